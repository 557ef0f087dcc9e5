//go:build unix

package listen

import (
	"io/fs"
	"syscall"
)

// inode tells a file from another that was moved into its place.
func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}
