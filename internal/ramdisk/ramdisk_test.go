package ramdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A fakeMac answers as macOS's tools do. None was at hand: the form of their
// answers is that of Apple's manual pages and of what others have published
// (hdiutil of macOS 10.13, framework 480.60.1).
type fakeMac struct {
	disks   map[string]*fakeDisk // by device
	ran     []string
	fail    map[string]bool   // by the beginning of a command
	answers map[string]string // in place of the real ones
	owners  bool
	mounted func(Mount) Mount // what the kernel says in place of the truth
}

type fakeDisk struct {
	path, on string
	owner    int
	fs       bool
}

func newMac() *fakeMac {
	return &fakeMac{
		disks: map[string]*fakeDisk{"/dev/disk2": {path: "/Users/me/Downloads/Some & other.dmg", owner: 501, on: "/Volumes/Some & other"}},
		fail:  map[string]bool{}, answers: map[string]string{}, owners: true,
	}
}

func (m *fakeMac) system() *System {
	return &System{Run: m.run, Mounted: m.statfs, UID: 501, GID: 20}
}

func (m *fakeMac) run(name string, args ...string) ([]byte, error) {
	line := strings.Join(append([]string{name}, args...), " ")
	m.ran = append(m.ran, line)
	for begin := range m.fail {
		if strings.HasPrefix(line, begin) {
			return nil, errors.New("exit status 1")
		}
	}
	for begin, answer := range m.answers {
		if strings.HasPrefix(line, begin) {
			return []byte(answer), nil
		}
	}
	switch device := args[len(args)-1]; {
	case strings.HasPrefix(line, "/usr/bin/hdiutil attach -nomount -nobrowse ram://"):
		m.disks["/dev/disk4"] = &fakeDisk{path: device, owner: 501}
		return []byte("/dev/disk4          \t         \t\n"), nil
	case line == "/usr/bin/hdiutil info -plist":
		return m.info(), nil
	case strings.HasPrefix(line, "/sbin/newfs_hfs "):
		m.disks[device].fs = true
		return []byte("Initialized /dev/rdisk4 as a 64 MB case-sensitive HFS Plus volume\n"), nil
	case strings.HasPrefix(line, "/sbin/mount -t hfs "):
		d := m.disks[args[len(args)-2]]
		if !d.fs {
			return nil, errors.New("exit status 71")
		}
		d.on = device
		return nil, nil
	case strings.HasPrefix(line, "/usr/bin/hdiutil detach "):
		if m.disks[device] == nil {
			return nil, errors.New("exit status 1")
		}
		delete(m.disks, device)
		return fmt.Appendf(nil, "\"%s\" ejected.\n", strings.TrimPrefix(device, "/dev/")), nil
	}
	return nil, fmt.Errorf("no such command: %s", line)
}

const plistHead = `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
`

func (m *fakeMac) info() []byte {
	out := plistHead + "<plist version=\"1.0\">\n<dict>\n\t<key>framework</key>\n\t<string>480.60.1</string>\n\t<key>images</key>\n\t<array>\n"
	for device, d := range m.disks {
		out += fmt.Sprintf(`		<dict>
			<key>autodiskmount</key>
			<false/>
			<key>blockcount</key>
			<integer>131072</integer>
			<key>blocksize</key>
			<integer>512</integer>
			<key>hdid-pid</key>
			<integer>73094</integer>
			<key>icon-path</key>
			<string>/System/Library/PrivateFrameworks/DiskImages.framework/Resources/CDiskImage.icns</string>
			<key>image-encrypted</key>
			<false/>
			<key>image-path</key>
			<string>%s</string>
			<key>image-type</key>
			<string>read/write</string>
			<key>owner-uid</key>
			<integer>%d</integer>
			<key>removable</key>
			<true/>
			<key>system-entities</key>
			<array>
				<dict>
					<key>content-hint</key>
					<string></string>
					<key>dev-entry</key>
					<string>%s</string>
				</dict>
			</array>
			<key>writeable</key>
			<true/>
		</dict>
`, strings.ReplaceAll(d.path, "&", "&amp;"), d.owner, device)
	}
	return []byte(out + "\t</array>\n\t<key>revision</key>\n\t<string>10.13v480.60.1</string>\n\t<key>vendor</key>\n\t<string>Apple</string>\n</dict>\n</plist>\n")
}

func (m *fakeMac) statfs(dir string) (Mount, error) {
	out := Mount{On: "/System/Volumes/Data", From: "/dev/disk3s5", Type: "apfs", Owners: true}
	for device, d := range m.disks {
		if d.on == dir {
			out = Mount{On: dir, From: device, Type: "hfs", Owners: m.owners}
		}
	}
	if m.mounted != nil {
		out = m.mounted(out)
	}
	return out, nil
}

func TestMountMakesARAMDiskAndUnmountDetachesIt(t *testing.T) {
	t.Parallel()
	m, dir := newMac(), t.TempDir() // of mode 0755, as what newfs_hfs makes
	s := m.system()
	if err := s.Mount(dir); err != nil {
		t.Fatalf("Mount: %v", err)
	}
	if d := m.disks["/dev/disk4"]; d == nil || d.on != dir {
		t.Errorf("after Mount the disks are %+v", m.disks)
	}
	if _, err := os.Stat(filepath.Join(dir, ".metadata_never_index")); err != nil {
		t.Errorf("Spotlight may read it: %v", err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("others may look into it: %v, %v", fi.Mode(), err)
	}
	if held, err := s.Holds(dir); !held || err != nil {
		t.Errorf("Holds = %v, %v, want true", held, err)
	}
	if was, err := s.Unmount(dir); !was || err != nil {
		t.Errorf("Unmount = %v, %v, want true", was, err)
	}
	if m.disks["/dev/disk4"] != nil || m.disks["/dev/disk2"] == nil {
		t.Errorf("after Unmount the disks are %+v", m.disks)
	}
	if was, err := s.Unmount(dir); was || err != nil {
		t.Errorf("Unmount of a plain folder = %v, %v, want false", was, err)
	}
	want := []string{
		"/usr/bin/hdiutil attach -nomount -nobrowse ram://131072",
		"/usr/bin/hdiutil info -plist",
		"/sbin/newfs_hfs -s -U 501 -G 20 -v runenv /dev/disk4",
		"/sbin/mount -t hfs -o nobrowse,nodev,nosuid,noexec /dev/disk4 " + dir,
		"/usr/bin/hdiutil info -plist",
		"/usr/bin/hdiutil info -plist",
		"/usr/bin/hdiutil detach /dev/disk4",
	}
	if diff := cmp.Diff(want, m.ran); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}

// What fails half way leaves no disk attached.
func TestMountThatFailsDetaches(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		set  func(*fakeMac)
	}{
		{"attaching is refused", func(m *fakeMac) { m.fail["/usr/bin/hdiutil attach"] = true }},
		{"formatting fails", func(m *fakeMac) { m.fail["/sbin/newfs_hfs"] = true }},
		{"mounting fails", func(m *fakeMac) { m.fail["/sbin/mount"] = true }},
		{"mounting does nothing", func(m *fakeMac) { m.answers["/sbin/mount"] = "" }},
		{"files would be everybody's", func(m *fakeMac) { m.owners = false }},
		{"another disk is mounted there", func(m *fakeMac) {
			m.mounted = func(k Mount) Mount { k.From = "/dev/disk9"; return k }
		}},
		{"another file system is mounted there", func(m *fakeMac) {
			m.mounted = func(k Mount) Mount { k.Type = "apfs"; return k }
		}},
		{"busy when it is detached", func(m *fakeMac) {
			m.fail["/sbin/mount"], m.fail["/usr/bin/hdiutil detach /dev"] = true, true
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMac()
			tt.set(m)
			if err := m.system().Mount(t.TempDir()); err == nil {
				t.Error("Mount succeeded")
			}
			if len(m.disks) != 1 || m.disks["/dev/disk2"] == nil {
				t.Errorf("left: %+v", m.disks)
			}
		})
	}
}

// What isn't surely a RAM disk of this user's is neither written to nor
// detached.
func TestP1DiskThatIsNoRAMDiskIsLeftAlone(t *testing.T) {
	t.Parallel()
	const attach, info = "/usr/bin/hdiutil attach", "/usr/bin/hdiutil info"
	tests := []struct {
		name string
		set  func(*fakeMac)
	}{
		{"attach names an image on a disk", func(m *fakeMac) { m.answers[attach] = "/dev/disk2\n" }},
		{"attach names a disk that is no image", func(m *fakeMac) { m.answers[attach] = "/dev/disk0\n" }},
		{"attach names a partition", func(m *fakeMac) { m.answers[attach] = "/dev/disk2s1\n" }},
		{"attach names two disks", func(m *fakeMac) { m.answers[attach] = "/dev/disk4\n/dev/disk2\n" }},
		{"attach says nothing", func(m *fakeMac) { m.answers[attach] = "" }},
		{"attach names no device", func(m *fakeMac) { m.answers[attach] = "/dev/disk4/../disk0\n" }},
		{"another user's RAM disk", func(m *fakeMac) {
			m.answers[attach] = "/dev/disk5\n"
			m.disks["/dev/disk5"] = &fakeDisk{path: "ram://131072", owner: 502}
		}},
		{"an image whose name only begins so", func(m *fakeMac) {
			m.answers[attach] = "/dev/disk5\n"
			m.disks["/dev/disk5"] = &fakeDisk{path: "ram://131072/../secret.dmg", owner: 501}
		}},
		{"the list fails", func(m *fakeMac) { m.fail[info] = true }},
		{"the list is empty", func(m *fakeMac) { m.answers[info] = "" }},
		{"the list is cut off", func(m *fakeMac) { m.answers[info] = plistHead + `<plist version="1.0"><dict><key>images</key><array>` }},
		{"the list is too long", func(m *fakeMac) { m.answers[info] = string(m.info()) + strings.Repeat(" ", maxInfoBytes) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMac()
			tt.set(m)
			if err := m.system().Mount(t.TempDir()); err == nil {
				t.Error("Mount succeeded")
			}
			for _, line := range m.ran {
				if !strings.HasPrefix(line, attach) && !strings.HasPrefix(line, info) {
					t.Errorf("ran %s", line)
				}
			}
		})
	}
}

func TestP1UnmountDetachesNoOtherDisk(t *testing.T) {
	t.Parallel()
	for name, disk := range map[string]fakeDisk{
		"an image on a disk":      {path: "/Users/me/a.dmg", owner: 501},
		"another user's RAM disk": {path: "ram://131072", owner: 502},
	} {
		m := newMac()
		disk.on = "/Volumes/x"
		m.disks["/dev/disk5"] = &disk
		if was, err := m.system().Unmount("/Volumes/x"); !was || err == nil || m.disks["/dev/disk5"] == nil {
			t.Errorf("%s: Unmount = %v, %v; the disks are %+v", name, was, err, m.disks)
		}
	}
	m := newMac()
	m.mounted = func(Mount) Mount { return Mount{On: "/Volumes/x", From: "/dev/disk0", Type: "hfs", Owners: true} }
	if was, err := m.system().Unmount("/Volumes/x"); !was || err == nil {
		t.Errorf("a disk: Unmount = %v, %v, want an error", was, err)
	}
}

func TestUnmountOfABusyDisk(t *testing.T) {
	t.Parallel()
	m, dir := newMac(), t.TempDir()
	if err := m.system().Mount(dir); err != nil {
		t.Fatal(err)
	}
	m.fail["/usr/bin/hdiutil detach /dev"] = true // hdiutil: couldn't eject "disk4" - Resource busy
	if was, err := m.system().Unmount(dir); !was || err != nil {
		t.Errorf("busy: Unmount = %v, %v, want it forced", was, err)
	}
	if last := m.ran[len(m.ran)-1]; last != "/usr/bin/hdiutil detach -force /dev/disk4" {
		t.Errorf("the last command was %s", last)
	}
	m, dir = newMac(), t.TempDir()
	if err := m.system().Mount(dir); err != nil {
		t.Fatal(err)
	}
	m.fail["/usr/bin/hdiutil detach"] = true
	if was, err := m.system().Unmount(dir); !was || err == nil {
		t.Errorf("held for ever: Unmount = %v, %v, want an error", was, err)
	}
}

// Between the first try and the second the disk may go: no error.
func TestUnmountOfADiskThatGoes(t *testing.T) {
	t.Parallel()
	m, dir := newMac(), t.TempDir()
	s := m.system()
	if err := s.Mount(dir); err != nil {
		t.Fatal(err)
	}
	s.Run = func(name string, args ...string) ([]byte, error) {
		out, err := m.run(name, args...)
		if args[0] == "detach" {
			return nil, errors.New("it took longer than 15s")
		}
		return out, err
	}
	if was, err := s.Unmount(dir); !was || err != nil {
		t.Errorf("Unmount = %v, %v, want it gone", was, err)
	}
}

func TestP1HoldsOnlyForMemory(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		disk fakeDisk
		want bool
	}{
		{"this user's RAM disk", fakeDisk{path: "ram://2048", owner: 501}, true},
		{"root's RAM disk", fakeDisk{path: "ram://2048", owner: 0}, true},
		{"another user's RAM disk", fakeDisk{path: "ram://2048", owner: 502}, false},
		{"an image on a disk", fakeDisk{path: "/Users/me/ram.dmg", owner: 501}, false},
		{"a file of that name", fakeDisk{path: "/Users/me/ram://2048", owner: 501}, false},
		{"no size", fakeDisk{path: "ram://", owner: 501}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMac()
			tt.disk.on = "/Volumes/x"
			m.disks["/dev/disk5"] = &tt.disk
			if got, err := m.system().Holds("/Volumes/x"); got != tt.want || err != nil {
				t.Errorf("Holds = %v, %v, want %v", got, err, tt.want)
			}
		})
	}
	m := newMac()
	if got, err := m.system().Holds("/tmp"); got || err != nil || len(m.ran) > 0 {
		t.Errorf("Holds of a folder on APFS = %v, %v, and ran %v", got, err, m.ran)
	}
	m.disks["/dev/disk5"] = &fakeDisk{path: "ram://2048", owner: 501, on: "/Volumes/x"}
	m.fail["/usr/bin/hdiutil info"] = true
	if got, err := m.system().Holds("/Volumes/x"); got || err == nil {
		t.Errorf("Holds where nobody knows = %v, %v, want an error", got, err)
	}
}

func TestSwapEncrypted(t *testing.T) {
	t.Parallel()
	usage := make([]byte, 32)
	if SwapEncrypted(usage) || SwapEncrypted(nil) || SwapEncrypted(append(usage, 1, 0, 0, 0)) {
		t.Error("a swap passes for encrypted")
	}
	usage[28] = 1
	if !SwapEncrypted(usage) {
		t.Error("an encrypted swap isn't known")
	}
}
