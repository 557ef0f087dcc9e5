package sdnotify

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is the clock that systemd compares with its own.
func monotonic() (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano()), err
}
