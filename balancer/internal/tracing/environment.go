package tracing

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// checkEnvironment says what is wrong with the variables that OpenTelemetry's packages read by themselves. Those write it to standard
// error, what may be a secret included, and go on without the variable.
func checkEnvironment() error {
	for _, name := range []string{"OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"} {
		if err := checkNumber(name); err != nil {
			return err
		}
	}
	for _, prefix := range []string{"OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"} {
		if err := checkNumber(prefix + "TIMEOUT"); err != nil {
			return err
		}
		if text := variable(prefix + "ENDPOINT"); text != "" {
			if u, err := url.Parse(text); err != nil || u.Host == "" && u.Scheme != "unix" {
				return fmt.Errorf("%sENDPOINT is no URL: write it as in http://127.0.0.1:4318", prefix) // it may hold a password
			}
		}
		if text := variable(prefix + "HEADERS"); text != "" {
			for n, field := range strings.Split(text, ",") {
				if name, _, ok := strings.Cut(field, "="); !ok || strings.TrimSpace(name) == "" {
					return fmt.Errorf("%sHEADERS: field %d has no name or no =: write name=value,name=value", prefix, n+1)
				}
			}
		}
		if file := variable(prefix + "CERTIFICATE"); file != "" {
			pem, err := os.ReadFile(file)
			if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
				err = fmt.Errorf("%s holds no certificate", file)
			}
			if err != nil {
				return fmt.Errorf("%sCERTIFICATE: %w", prefix, err)
			}
		}
		if cert, key := variable(prefix+"CLIENT_CERTIFICATE"), variable(prefix+"CLIENT_KEY"); cert != "" || key != "" {
			if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
				return fmt.Errorf("%sCLIENT_CERTIFICATE and _CLIENT_KEY: %w", prefix, err)
			}
		}
	}
	return nil
}

// variable is the value of a variable as OpenTelemetry's packages read it.
func variable(name string) string { return strings.TrimSpace(os.Getenv(name)) }

func checkNumber(name string) error {
	if text := variable(name); text != "" {
		if n, err := strconv.Atoi(text); err != nil || n < 0 {
			return fmt.Errorf("%s=%s: write a number", name, text)
		}
	}
	return nil
}
