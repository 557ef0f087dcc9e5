//go:build !linux

package netloop

import (
	"errors"
	"syscall"
	"time"
)

const haveEpoll = false

func newLoops(Options) (Engine, error) { return nil, errors.ErrUnsupported }

// Splice returns errors.ErrUnsupported: bytes have to be copied.
func Splice(dst, src Conn, prefix []byte, n int64) (written int64, rerr, werr error) {
	return 0, errors.ErrUnsupported, nil
}

func unacknowledged(syscall.RawConn) int { return -1 }

func unread(syscall.RawConn) bool { return false }

// lastAccept is how long a listener that is being closed waits for another connection of the kernel's queue.
const lastAccept = 5 * time.Millisecond

// queued is unknown: it may be.
func queued(syscall.RawConn) bool { return true }
