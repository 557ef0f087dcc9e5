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
	size        int // bytes of the answer's body
	connections int
	post        int  // bytes of the request's body; 0 asks with GET
	close       bool // a connection for each request; with tls also a handshake, which is the point then
	resume      bool // handshakes resume a session
}

var testCases = []testCase{
	{name: "h1-1k", about: "HTTP/1.1, keep-alive, 1 KiB", size: 1 << 10, connections: 64},
	{name: "h1-1k-512", about: "the same over 512 connections", size: 1 << 10, connections: 512},
	{name: "h1-5000", about: "the same over 5,000 connections", size: 1 << 10, connections: 5000},
	{name: "h1-64k", about: "64 KiB", size: 64 << 10, connections: 64},
	{name: "h1-1m", about: "1 MiB", size: 1 << 20, connections: 16},
	{name: "post-16k", about: "POST of 16 KiB, answered by 1 KiB", size: 1 << 10, connections: 64, post: 16 << 10},
	{name: "close-1k", about: "HTTP/1.1, a connection per request, 1 KiB", size: 1 << 10, connections: 64, close: true},
	{name: "tls-1k", about: "TLS 1.3, keep-alive, 1 KiB", tls: true, size: 1 << 10, connections: 64},
	{name: "tls-64k", about: "TLS 1.3, 64 KiB", tls: true, size: 64 << 10, connections: 64},
	{name: "tls-handshake", about: "TLS 1.3, a connection with a full handshake per request, 1 KiB", tls: true, size: 1 << 10, connections: 64, close: true},
	{name: "tls-resume", about: "the same with the session resumed", tls: true, size: 1 << 10, connections: 64, close: true, resume: true},
}

// caseNames are those that -case knows.
func caseNames() string {
	var names []string
	for _, c := range testCases {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

// findCase returns the case of that name.
func findCase(name string) (testCase, error) {
	for _, c := range testCases {
		if c.name == name {
			return c, nil
		}
	}
	return testCase{}, fmt.Errorf("unknown case %q: there are %s", name, caseNames())
}

// bodyPath is where the body is.
const bodyPath = "/body"

// asked is the case of this run; sent is the request's body, body what has to come back, and request the whole of it for
// those who write it themselves.
var (
	asked      testCase
	sent, body []byte
	request    []byte
)

func init() { setCase(testCases[0]) }

// setCase asks for another case. It is called once, before anything starts.
func setCase(c testCase) {
	asked, sent, body = c, bodyOf(c.post), bodyOf(c.size)
	head := method() + " " + bodyPath + " HTTP/1.1\r\nHost: bench\r\n"
	if c.post > 0 {
		head += fmt.Sprintf("Content-Length: %d\r\n", c.post)
	}
	if c.close {
		head += "Connection: close\r\n"
	}
	request = append([]byte(head+"\r\n"), sent...)
}

func method() string {
	if asked.post > 0 {
		return http.MethodPost
	}
	return http.MethodGet
}

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
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the rig has made the certificate
			DisableKeepAlives: asked.close,
		},
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
