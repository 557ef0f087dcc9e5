//go:build linux

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/rota-lb/rota/bench/internal/rig"
)

// testCase is what is asked for. The default one is the first.
type testCase struct {
	name        string
	about       string
	tls         bool
	size        int // bytes of the body
	connections int
}

var testCases = []testCase{
	{"h1-1k", "HTTP/1.1, keep-alive, 1 KiB", false, 1 << 10, 64},
	{"h1-1k-512", "the same over 512 connections", false, 1 << 10, 512},
	{"h1-64k", "64 KiB", false, 64 << 10, 64},
	{"h1-1m", "1 MiB", false, 1 << 20, 16},
	{"tls-1k", "TLS 1.3, keep-alive, 1 KiB", true, 1 << 10, 64},
	{"tls-64k", "TLS 1.3, 64 KiB", true, 64 << 10, 64},
}

// findCase returns the case of that name.
func findCase(name string) (testCase, error) {
	var names []string
	for _, c := range testCases {
		if c.name == name {
			return c, nil
		}
		names = append(names, c.name)
	}
	return testCase{}, fmt.Errorf("unknown case %q: there are %s", name, strings.Join(names, ", "))
}

// asked is the case of this run; body is what has to come, and bodyPath where it is.
var (
	asked    = testCases[0]
	body     = bodyOf(asked.size)
	bodyPath = "/body"
)

// ask for another case. It is called once, before anything starts.
func setCase(c testCase) { asked, body = c, bodyOf(c.size) }

func bodyOf(size int) []byte { return bytes.Repeat([]byte("0123456789abcde\n"), size/16) }

func scheme() string {
	if asked.tls {
		return "https://"
	}
	return "http://"
}

// asking is a client for one connection at a time.
func asking() *http.Client {
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, // the rig has made the certificate
	}
}

// certificate writes a chain and its key, in one file for HAProxy and in two for the others.
func certificate(r *rig.Rig) (cert, key, both string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, DNSNames: []string{"bench"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return "", "", "", err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", "", err
	}
	chain := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	secret := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	for file, text := range map[string]string{"cert.pem": chain, "key.pem": secret, "both.pem": chain + secret} {
		path, err := r.File(file, text)
		if err != nil {
			return "", "", "", err
		}
		switch file {
		case "cert.pem":
			cert = path
		case "key.pem":
			key = path
		default:
			both = path
		}
	}
	return cert, key, both, nil
}
