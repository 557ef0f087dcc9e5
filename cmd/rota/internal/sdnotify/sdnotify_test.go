//go:build linux

package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestNotifier(t *testing.T) {
	for name, address := range map[string]string{
		"a path": filepath.Join(t.TempDir(), "notify"), "abstract": fmt.Sprintf("@rota-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			bound := address
			if bound[0] == '@' {
				bound = "\x00" + bound[1:]
			}
			manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: bound, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer manager.Close()
			t.Setenv("NOTIFY_SOCKET", address)
			t.Setenv("WATCHDOG_USEC", "20000")
			n := FromEnv()
			next := func() string {
				t.Helper()
				var b [4096]byte
				manager.SetReadDeadline(time.Now().Add(5 * time.Second))
				k, err := manager.Read(b[:])
				if err != nil {
					t.Fatal(err)
				}
				return string(b[:k])
			}
			n.Ready()
			if got, want := next(), fmt.Sprintf("READY=1\nMAINPID=%d", os.Getpid()); got != want {
				t.Errorf("ready: %q", got)
			}
			n.Reloading()
			if got := next(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
				t.Errorf("reloading: %q", got)
			}
			n.Status("two\nlines\x00READY=1")
			if got := next(); got != "STATUS=two lines READY=1" {
				t.Errorf("status: %q", got)
			}
			n.Stopping()
			if got := next(); got != "STOPPING=1" {
				t.Errorf("stopping: %q", got)
			}

			ctx, cancel := context.WithCancel(t.Context())
			asked, ended := make(chan error), make(chan struct{})
			go func() {
				defer close(ended)
				n.Watch(ctx, func(ctx context.Context) error {
					select {
					case err := <-asked:
						return err
					case <-ctx.Done():
						return ctx.Err()
					}
				})
			}()
			asked <- nil
			if got := next(); got != "WATCHDOG=1" {
				t.Errorf("watchdog: %q", got)
			}
			asked <- errors.New("stuck")
			asked <- errors.New("stuck")
			manager.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if k, err := manager.Read(make([]byte, 10)); err == nil {
				t.Errorf("%d bytes although it is stuck", k)
			}
			cancel()
			<-ended
		})
	}
	t.Setenv("NOTIFY_SOCKET", "")
	none := FromEnv()
	none.Ready()
	none.Reloading()
	none.Stopping()
	none.Status("nobody hears it")
	none.Watch(t.Context(), nil)
	if none != nil {
		t.Error("a notifier without a manager")
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	FromEnv().Ready()
}
