//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// typist is a shell that is given one line after another.
type typist struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

// newTypist starts a shell with a program at bin/rota, in a directory of its own. At the end whatever it has started goes with it.
func newTypist(t *testing.T, env ...string) *typist {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "bin/rota")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-m") // jobs have groups of their own, as in a shell that is typed into
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append(env, "ROTA_TEST_MAIN=1")...)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		io.WriteString(in, "kill $(jobs -p) 2>/dev/null; wait; exit\n")
		cmd.Wait()
		if said, err := os.ReadFile(filepath.Join(dir, "jobs.log")); err == nil && t.Failed() {
			t.Logf("what ran beside says:\n%s", said)
		}
	})
	return &typist{t, in, bufio.NewScanner(out)}
}

// run runs a line and returns what it prints.
func (s *typist) run(line string) string {
	s.t.Helper()
	if strings.HasSuffix(line, "&") {
		line = strings.TrimSuffix(line, "&") + "</dev/null >>jobs.log 2>&1 &" // else what it prints later would be another line's
	}
	fmt.Fprintf(s.in, "%s\necho; echo 'that was it'\n", line)
	var out strings.Builder
	for s.out.Scan() {
		if s.out.Text() == "that was it" {
			return out.String()
		}
		out.WriteString(s.out.Text() + "\n")
	}
	s.t.Fatalf("the shell has ended: %v", s.out.Err())
	return ""
}

var (
	differs = regexp.MustCompile(`[0-9](?:[0-9:]|\\?\.)*m?s?`) // ports, times, counts; 2.64ms may be 870µs
	blank   = regexp.MustCompile(`\\? +`)
)

// likeness is an expression for what is like a line of the README, wherever the parts of its text are.
func likeness(line string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^` + blank.ReplaceAllString(differs.ReplaceAllString(regexp.QuoteMeta(line), `[0-9][0-9.:a-zµ]*`), ` *`) + `$`)
}

// What the README tells a newcomer to type does what it says.
func TestREADME(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"bash", "curl", "pgrep", "python3"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(name + " is not there")
		}
	}
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "## Try it\n")
	text, _, _ = strings.Cut(text, "\n## ")
	blocks := regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(blocks) < 5 {
		t.Fatalf("there are %d blocks to type", len(blocks))
	}

	dev := spawn(t, "dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	dashboard := dev.find(`dashboard +http://(\S+)/`)
	port := dev.find(`balancer +http://localhost:(\d+)/`)
	endpoint := dev.find(`etcd +(\S+)`)
	if status, body, _ := get(t, dashboard, dashboard, "/"); status != 200 || !strings.Contains(body, "dashboard.js") {
		t.Errorf("the dashboard: %d %s", status, body)
	}
	sh := newTypist(t, "ETCDCTL_ENDPOINTS="+endpoint, "ROTA_ADMIN_ADDRESS="+dashboard)
	elsewhere := strings.NewReplacer("localhost:8080", "localhost:"+port, "localhost:9797", dashboard)
	changes := regexp.MustCompile(`&$|^kill|rota drain|routes put`)
	for _, block := range blocks {
		for _, step := range strings.Split(strings.TrimPrefix(block[1], "$ "), "\n$ ") {
			line, shown, _ := strings.Cut(step, "\n")
			line = elsewhere.Replace(line)
			missing := func() (string, bool) {
				out := sh.run(line)
				for want := range strings.Lines(shown) {
					want = elsewhere.Replace(strings.TrimSpace(want))
					if want != "" && !likeness(want).MatchString(blankStart.ReplaceAllString(out, "")) {
						return fmt.Sprintf("%q is not in\n%s", want, out), true
					}
				}
				return "", false
			}
			for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				what, is := missing()
				if !is {
					break
				}
				if changes.MatchString(line) || time.Now().After(deadline) {
					t.Fatalf("$ %s\n%s", line, what)
				}
			}
		}
	}
	dev.Process.Signal(syscall.SIGINT)
	if status := dev.exit(); status != 0 {
		t.Errorf("Ctrl-C ends it with %d", status)
	}
}

var blankStart = regexp.MustCompile(`(?m)^ +| +$`)
