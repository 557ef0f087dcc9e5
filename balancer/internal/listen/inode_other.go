//go:build !unix

package listen

import "io/fs"

// inode is unknown here: size and time have to do.
func inode(fs.FileInfo) uint64 { return 0 }
