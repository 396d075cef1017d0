package logstore

import "syscall"

// lengthen makes a file n bytes longer than offset; what was not written reads as zeros. false: it is as long as before.
func lengthen(fd uintptr, offset, n int64) bool {
	return syscall.Fallocate(int(fd), 0, offset, n) == nil
}
