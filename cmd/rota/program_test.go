package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// program is what the tests of "rota register" run: a server on $PORT that tells the test, at $ROTA_TEST_NOTIFY, what
// happens to it, and goes on when the test has answered. It ends with its standard input, so that no test leaves one
// behind. What it does is said by words:
//
//	unwell    fails its check until it is told otherwise
//	exit=n    ends with status n upon TERM, or GET /exit
//	stubborn  does not end upon TERM
//	family    has a child in its group that tells what happens to it, too
//	lone      is that child: no server
//	orphan    leaves processes behind for others to reap, and says when they are reaped
func program(words []string) {
	has := func(word string) bool { return slices.Contains(words, word) }
	status, name := 0, "program"
	for _, w := range words {
		if n, ok := strings.CutPrefix(w, "exit="); ok {
			status, _ = strconv.Atoi(n)
		}
	}
	if has("lone") {
		name = "lone"
	}
	tell := func(what string) {
		values := url.Values{"who": {name}, "what": {what}, "pid": {strconv.Itoa(os.Getpid())}, "port": {os.Getenv("PORT")}, "id": {os.Getenv("ROTA_INSTANCE")}}
		resp, err := http.Get(os.Getenv("ROTA_TEST_NOTIFY") + "/?" + values.Encode())
		if err != nil {
			os.Exit(98)
		}
		resp.Body.Close()
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(97)
	}()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	if has("family") {
		lone := exec.Command(os.Args[0], programArg, "lone")
		lone.Stdin, lone.Stdout, lone.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := lone.Start(); err != nil {
			os.Exit(96)
		}
	}
	if !has("lone") {
		var unwell atomic.Bool
		var asked atomic.Int64
		unwell.Store(has("unwell"))
		mux := http.NewServeMux()
		mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			if unwell.Load() {
				w.WriteHeader(503)
			}
		})
		mux.HandleFunc("/well", func(http.ResponseWriter, *http.Request) { unwell.Store(false) })
		mux.HandleFunc("/unwell", func(http.ResponseWriter, *http.Request) { unwell.Store(true) })
		mux.HandleFunc("/asked", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, asked.Load()) })
		mux.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) { os.Exit(status) })
		ln, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
		if err != nil {
			fmt.Println(err)
			os.Exit(95)
		}
		go http.Serve(ln, mux)
	}
	tell("up")
	if has("orphan") {
		go orphan(tell)
	}
	for sig := range signals {
		tell(sig.String())
		if sig != syscall.SIGHUP && !has("stubborn") {
			os.Exit(status)
		}
	}
}

// orphan starts shells that start others and end before them, until one of these has gone without a trace.
func orphan(tell func(string)) {
	out, err := exec.Command("/bin/sh", "-c", "sleep 0.05 >/dev/null & echo $!").Output()
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || convErr != nil {
		fmt.Println("no orphan:", err, convErr)
		os.Exit(94)
	}
	process, err := os.FindProcess(pid)
	for err == nil { // who is dead and not reaped can still be signalled
		time.Sleep(5 * time.Millisecond)
		err = process.Signal(syscall.Signal(0))
	}
	tell("reaped")
}
