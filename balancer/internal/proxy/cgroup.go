package proxy

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroupLimit is the memory limit of the process's control group (cgroups(7)), of either version; zero without one.
func cgroupLimit() int64 {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0
	}
	files := []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}
	for line := range strings.SplitSeq(string(own), "\n") {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			files = append(files, filepath.Join("/sys/fs/cgroup", path, "memory.max"))
		}
	}
	least := int64(0)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && n > 0 && n < 1<<50 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}
