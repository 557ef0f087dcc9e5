package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// LogFormats are the formats of the access log that have a name; anything else is a template.
var LogFormats = []string{"json", "common", "combined"}

// LogVariables are what a template of the access log may name.
var LogVariables = []string{
	"args", "attempts", "body_bytes_sent", "bytes_sent", "flag", "host", "http_referer", "http_user_agent", "msec", "reason", "remote_addr",
	"remote_port", "remote_user", "request", "request_id", "request_length", "request_method", "request_time", "request_uri", "route", "scheme",
	"server_protocol", "service", "status", "table_revision", "time_iso8601", "time_local", "trace_id", "upstream_addr", "upstream_response_time",
	"upstream_status", "uri",
}

// SampleShare is what Sample says, from 0 to 1. Where it says nothing, everything is logged unless there is a filter.
func (l *Log) SampleShare() (float64, error) {
	switch {
	case l.Sample == "" && l.Filter.empty():
		return 1, nil
	case l.Sample == "":
		return 0, nil
	}
	number, ok := strings.CutSuffix(l.Sample, "%")
	share, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if !ok || err != nil || !(share >= 0 && share <= 100) {
		return 0, fmt.Errorf("%q is no share", l.Sample)
	}
	return share / 100, nil
}

func (f *LogFilter) empty() bool {
	return len(f.Status) == 0 && f.MinDuration == 0 && !f.Retried && !f.Failed
}

// log checks what is logged.
func (s *source) log(l *Log) {
	s.oneOf("log.level", l.Level, levels)
	s.access(l.Access)
	s.logFormat(l.Format)
	if _, err := l.SampleShare(); err != nil {
		s.report("log.sample", "sample "+err.Error(), `write "1%" to "100%": the share of lines that no filter takes`)
	}
	for i, text := range l.Filter.Status {
		if _, err := ParseStatus(text); err != nil {
			s.report(fmt.Sprintf("log.filter.status[%d]", i), "status "+err.Error(), `write "404", "400-499" or "5xx"`)
		}
	}
	for i, name := range l.Redact {
		if name == "" || strings.ContainsAny(name, "=&? ") {
			s.report(fmt.Sprintf("log.redact[%d]", i), fmt.Sprintf("%q is not the name of a parameter", clip(name)), "write it without its value")
		}
	}
}

// logFormat checks a format: a name, or a template.
func (s *source) logFormat(format string) {
	if format == "" || slices.Contains(LogFormats, format) {
		return
	}
	if !strings.Contains(format, "$") {
		hint := "use json, common, combined, or a template with variables such as $status"
		if meant := near(format, LogFormats); meant != "" {
			hint = fmt.Sprintf("did you mean %q?", meant)
		}
		s.report("log.format", fmt.Sprintf("%q is not a format", clip(format)), hint)
		return
	}
	if strings.ContainsAny(format, "\r\n") {
		s.report("log.format", "a template is one line", "leave line breaks out: every line gets one")
	}
	named := false
	for rest := format; ; {
		_, after, found := strings.Cut(rest, "$")
		if !found {
			if !named {
				s.report("log.format", "the template names no variable", "write it as in $status; $$ is only a dollar sign")
			}
			return
		}
		if rest = after; strings.HasPrefix(rest, "$") {
			rest = rest[1:]
			continue
		}
		named = true
		name := rest[:len(rest)-len(strings.TrimLeft(rest, "abcdefghijklmnopqrstuvwxyz0123456789_"))]
		if inner, ok := strings.CutPrefix(rest, "{"); ok {
			if name, _, ok = strings.Cut(inner, "}"); !ok {
				s.report("log.format", "${ has no }", "write it as in ${status}")
				return
			}
		}
		if !slices.Contains(LogVariables, name) {
			hint := "there are: $" + strings.Join(LogVariables, " $")
			if meant := near(name, LogVariables); meant != "" {
				hint = fmt.Sprintf("did you mean $%s?", meant)
			}
			s.report("log.format", fmt.Sprintf("there is no variable $%s", clip(name)), hint)
		}
		rest = strings.TrimPrefix(rest, name)
	}
}
