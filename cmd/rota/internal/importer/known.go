package importer

import "strings"

// What becomes of a directive that has no code of its own.
const (
	carried = "" // it has
	// Rota does by itself what the directive asks for, or the question does not arise.
	itself = "nothing to do: "
)

// known says of each directive why it is not carried over and what to do, or that it is carried over. What is not in here
// is unknown to the importer, and is told as that.
var known = map[string]string{}

func init() {
	for why, names := range map[string]string{
		carried: `http events server upstream location listen server_name ssl_certificate ssl_certificate_key ssl_protocols
			ssl_client_certificate ssl_verify_client client_max_body_size proxy_pass proxy_set_header proxy_connect_timeout
			proxy_read_timeout proxy_send_timeout proxy_next_upstream proxy_next_upstream_tries return rewrite add_header
			limit_req_zone limit_req limit_conn_zone limit_conn set_real_ip_from access_log client_header_timeout
			keepalive_timeout least_conn ip_hash hash random keepalive include if allow deny auth_basic auth_request
			auth_jwt internal limit_except secure_link types map geo split_clients stream mail try_files root alias
			fastcgi_pass uwsgi_pass scgi_pass grpc_pass memcached_pass proxy_http_version zone real_ip_header stub_status
			client_body_timeout`,
		itself + "it is about nginx's own processes": `user worker_processes worker_rlimit_nofile worker_connections worker_cpu_affinity
			worker_priority worker_shutdown_timeout pid daemon master_process lock_file multi_accept use accept_mutex load_module
			pcre_jit thread_pool working_directory debug_connection env timer_resolution error_log variables_hash_max_size
			variables_hash_bucket_size server_names_hash_max_size server_names_hash_bucket_size types_hash_max_size types_hash_bucket_size
			proxy_headers_hash_max_size proxy_headers_hash_bucket_size map_hash_max_size map_hash_bucket_size`,
		itself + "Rota streams both ways, and keeps short request bodies for retries": `proxy_buffering proxy_buffers proxy_buffer_size
			proxy_busy_buffers_size proxy_max_temp_file_size proxy_temp_file_write_size proxy_temp_path client_body_buffer_size
			client_body_temp_path client_body_in_file_only client_body_in_single_buffer postpone_output output_buffers`,
		itself + "Rota sets its sockets itself": `sendfile tcp_nopush tcp_nodelay aio directio sendfile_max_chunk proxy_socket_keepalive
			reset_timedout_connection lingering_close lingering_time lingering_timeout send_lowat`,
		itself + "Rota keeps connections to instances open, as long as they do":          "keepalive_requests keepalive_time",
		itself + "it is about files and their types":                                     `default_type charset charset_types open_file_cache open_file_cache_valid open_file_cache_min_uses open_file_cache_errors log_not_found etag if_modified_since`,
		itself + "Rota does not name its version to clients":                             "server_tokens",
		itself + "Rota's redirects and paths are as they are written":                    "absolute_redirect port_in_redirect server_name_in_redirect merge_slashes",
		itself + "Rota walks X-Forwarded-For over all trusted proxies":                   "real_ip_recursive",
		itself + "Rota verifies the certificates of instances":                           "proxy_ssl_verify_depth proxy_ssl_session_reuse proxy_ssl_server_name",
		itself + "Rota keeps sessions and tickets itself":                                "ssl_session_cache ssl_session_timeout ssl_session_tickets ssl_session_ticket_key ssl_buffer_size ssl_dhparam ssl_ecdh_curve ssl_prefer_server_ciphers ssl_early_data",
		itself + "heads may have 64 KiB in Rota":                                         "client_header_buffer_size large_client_header_buffers",
		itself + "the access log is written away from requests":                          "open_log_file_cache log_subrequest",
		"formats have no names in Rota; write it as log.format, with the same variables": "log_format",
		itself + "Rota refuses header fields that two readers would read differently":    "underscores_in_headers ignore_invalid_headers",

		"Rota chooses the ciphers itself, by the rules of Go's TLS; look at your requirements": "ssl_ciphers ssl_conf_command",
		"no OCSP stapling; leave it to short-lived certificates":                               "ssl_stapling ssl_stapling_verify ssl_trusted_certificate ssl_stapling_file ssl_crl ssl_ocsp",
		"the key must not be encrypted; decrypt it into a file that only rota reads":           "ssl_password_file",
		"no compression; let the services compress, or put what does in front":                 "gzip gzip_types gzip_comp_level gzip_min_length gzip_vary gzip_proxied gzip_disable gzip_static gzip_http_version gzip_buffers gunzip brotli brotli_types brotli_comp_level",
		"no cache; put one in front, or let the services answer with what caches need": `proxy_cache proxy_cache_path proxy_cache_key proxy_cache_valid
			proxy_cache_bypass proxy_no_cache proxy_cache_use_stale proxy_cache_lock proxy_cache_min_uses proxy_cache_methods proxy_cache_revalidate
			proxy_cache_background_update expires`,
		"no bodies are changed; do it in the service":                                                     "sub_filter sub_filter_once sub_filter_types ssi addition_types add_before_body add_after_body",
		"no error pages of one's own; Rota's say the reason, also in X-Rota-Reason":                       "error_page proxy_intercept_errors recursive_error_pages",
		"Location of answers is passed on as it is; let the service write addresses that clients can use": "proxy_redirect",
		"cookies of answers are passed on as they are; let the service set them for its public path":      "proxy_cookie_path proxy_cookie_domain proxy_cookie_flags",
		"answers pass with their headers; use response_headers.remove of the route":                       "proxy_hide_header proxy_pass_header proxy_ignore_headers",
		"requests pass with headers, body and method as they are; use request_headers of the route":       "proxy_pass_request_headers proxy_pass_request_body proxy_method proxy_set_body",
		"Rota has variables in redirects only; write the values out":                                      "set set_by_lua set_by_lua_block",
		"no subrequests; put conditions into the routes, or do it in the service":                         "auth_request_set mirror_request_body post_action",
		"write mirror: {service: …} at the route":                                                         "mirror",
		"HTTP/1.1 only, so far": "http2 http3 quic_retry http2_max_concurrent_streams http2_push http2_push_preload",
		"names are not resolved; write IP addresses, or let the instances register":                            "resolver resolver_timeout",
		"the rate of one answer is not limited":                                                                "limit_rate limit_rate_after proxy_limit_rate",
		"too many requests get a 429, and are not held back":                                                   "limit_req_status limit_conn_status limit_req_log_level limit_conn_log_level limit_req_dry_run limit_conn_dry_run",
		"an answer that is too slow is cut by limits.min_rate":                                                 "send_timeout",
		"retries end with their number; see timeout of the route":                                              "proxy_next_upstream_timeout",
		"connections to instances have the address that the system chooses":                                    "proxy_bind",
		"the exchange ends with the client":                                                                    "proxy_ignore_client_abort",
		"request bodies are streamed, so a slow client holds the service; bound it by limits.min_rate":         "proxy_request_buffering",
		"write tls: {ca, server_name, cert, key} at the service":                                               "proxy_ssl_trusted_certificate proxy_ssl_name proxy_ssl_certificate proxy_ssl_certificate_key proxy_ssl_verify proxy_ssl_protocols proxy_ssl_ciphers",
		"sticky sessions are not there yet; keep what belongs to a session in a place that all instances read": "sticky sticky_cookie_insert",
		"write check: {path: …} at the service":                                                                "health_check check check_http_send check_http_expect_alive match",
		"instances come and go by registering; see docs/registration.md":                                       "state resolve upsync upsync_dump_path ntlm",
		"no scripts; do it in the service":                                                                     "js_content js_import js_set perl content_by_lua_block access_by_lua_block rewrite_by_lua_block lua_package_path init_by_lua_block header_filter_by_lua_block content_by_lua_file access_by_lua_file",
		"nothing here reads files":                                                                             "index autoindex error_page_dir random_index dav_methods satisfy break uninitialized_variable_warn rewrite_log",
		"Rota takes the connection's own address where none is trusted; see trusted_proxies":                   "proxy_protocol_timeout",
	} {
		for name := range strings.FieldsSeq(names) {
			known[name] = why
		}
	}
}
