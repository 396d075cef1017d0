package disk

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"perdure/integration/harness"
)

// image is an ext4 file system of its own in a file, whose power can be cut.
type image struct{ file, loop, mount string }

// newImage makes and mounts an image. Where the kernel or the user may not, the test is skipped with the reason.
func newImage(t *testing.T) *image {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cutting the power under a file system needs root, for mounting an image")
	}
	for _, tool := range []string{"mkfs.ext4", "losetup", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cutting the power under a file system needs %s: %v", tool, err)
		}
	}
	dir := t.TempDir()
	im := &image{file: filepath.Join(dir, "image"), mount: filepath.Join(dir, "mount")}
	if err := os.WriteFile(im.file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(im.file, 512<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(im.mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", im.file).CombinedOutput(); err != nil {
		t.Skipf("this machine makes no ext4 image: %v: %s", err, out)
	}
	out, err := exec.Command("losetup", "-f", "--show", im.file).CombinedOutput()
	if err != nil {
		t.Skipf("this kernel gives no loop device: %v: %s", err, out)
	}
	im.loop = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		_ = exec.Command("umount", "-l", im.mount).Run() // it may not be mounted
		if out, err := exec.Command("losetup", "-d", im.loop).CombinedOutput(); err != nil {
			t.Errorf("free %s: %v: %s", im.loop, err, out)
		}
	})
	if err := im.attach(); err != nil {
		t.Skipf("this kernel does not mount the image: %v", err)
	}
	return im
}

func (im *image) attach() error {
	if out, err := exec.Command("mount", im.loop, im.mount).CombinedOutput(); err != nil {
		return fmt.Errorf("mount %s: %w: %s", im.loop, err, out)
	}
	return nil
}

func (im *image) detach() error {
	for deadline := time.Now().Add(patience); ; wait(context.Background(), 50*time.Millisecond) {
		out, err := exec.Command("umount", im.mount).CombinedOutput()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) { // until then a process that was just killed, or one that looks at disks, may hold it
			return fmt.Errorf("umount: %w: %s", err, out)
		}
	}
}

const (
	fsShutdown = 0x8004587d // FS_IOC_SHUTDOWN
	noLogFlush = 2          // not even the journal is written: what is on the disk now is all there is
)

// cut drops everything that the file system has not written to its disk.
func (im *image) cut() error {
	f, err := os.Open(im.mount)
	if err != nil {
		return fmt.Errorf("cut the power: %w", err)
	}
	defer f.Close()
	how := uint32(noLogFlush)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), fsShutdown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		return fmt.Errorf("cut the power: %w", errno)
	}
	return nil
}

// Power that fails under the file system, without any flush, loses nothing that was acknowledged.
func TestPowerLoss(t *testing.T) {
	im := newImage(t)
	s, err := harness.Open("perdure", filepath.Join(im.mount, "nodes"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the server's log:\n%s", s.LogTail(16<<10))
		}
		s.Close()
	})
	underLoad(t, s, func(*rand.Rand) error {
		if err := im.cut(); err != nil {
			return err
		}
		s.Kill()
		if err := im.detach(); err != nil {
			return err
		}
		if err := im.attach(); err != nil {
			return err
		}
		return s.Restart()
	})
}
