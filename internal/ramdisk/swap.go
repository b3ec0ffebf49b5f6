package ramdisk

import "encoding/binary"

// SwapEncrypted reads the answer of the sysctl vm.swapusage, a struct xsw_usage
// of macOS: three numbers of eight bytes, the size of a page in four, and in
// four whether pages that leave memory are encrypted under a key that doesn't.
// What isn't such an answer is a no.
func SwapEncrypted(usage []byte) bool {
	return len(usage) == 32 && binary.LittleEndian.Uint32(usage[28:]) == 1
}
