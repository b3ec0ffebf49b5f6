package ramdisk

import (
	"strings"
	"testing"
)

func TestInfoIsReadStrictly(t *testing.T) {
	t.Parallel()
	const image = `<dict><key>image-path</key><string>ram://8</string><key>owner-uid</key><integer>501</integer></dict>`
	in := func(images string) string {
		return plistHead + `<plist version="1.0"><dict><key>images</key>` + images + `</dict></plist>`
	}
	for name, text := range map[string]string{
		"nothing attached": in("<array/>"),
		"one":              in("<array>" + image + "</array>"),
		"more of an image": in("<array>" + strings.Replace(image, "<dict>", "<dict><key>x</key><real>1.5</real><key>y</key><data>AA==</data>", 1) + "</array>"),
	} {
		if _, err := parseInfo([]byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"nothing":              "",
		"words":                "hdiutil: info failed",
		"other XML":            "<html></html>",
		"no images":            plistHead + `<plist version="1.0"><dict></dict></plist>`,
		"no dict":              plistHead + `<plist version="1.0"><array/></plist>`,
		"no value":             plistHead + `<plist version="1.0"></plist>`,
		"two values":           plistHead + `<plist version="1.0"><array/><dict><key>images</key><array/></dict></plist>`,
		"two lists":            in("<array/>") + `<plist version="1.0"></plist>`,
		"images twice":         in("<array>" + image + "</array><key>images</key><array/>"),
		"images are no array":  in("<dict/>"),
		"an image is none":     in("<array><string>ram://8</string></array>"),
		"no path":              in("<array><dict/></array>"),
		"path is a number":     in("<array><dict><key>image-path</key><integer>8</integer></dict></array>"),
		"a number that is not": in("<array>" + strings.Replace(image, "501", "0x0", 1) + "</array>"),
		"a key without value":  in("<array><dict><key>image-path</key></dict></array>"),
		"a value without key":  in("<array><dict><string>ram://8</string></dict></array>"),
		"an element in text":   in("<array><dict><key>image-path</key><string>ram://<b/>8</string></dict></array>"),
		"an unknown element":   in("<array><object/></array>"),
		"text between":         in("<array>ram</array>"),
		"an entity":            in("<array><dict><key>image-path</key><string>&ram;</string></dict></array>"),
		"cut off":              in("<array>" + image + "</array>")[:250],
		"too deep":             in(strings.Repeat("<array>", 30) + strings.Repeat("</array>", 30)),
		"too long":             in("<array/>" + strings.Repeat(" ", maxInfoBytes)),
	} {
		if got, err := parseInfo([]byte(text)); err == nil {
			t.Errorf("%s: parseInfo = %+v, want an error", name, got)
		}
	}
}

// Whatever a tool answers, it is read without a panic, and a device is one.
func FuzzAnswers(f *testing.F) {
	f.Add(newMac().info())
	f.Add([]byte("/dev/disk4          \t         \t\n"))
	f.Add([]byte(plistHead + `<plist version="1.0"><dict><key>images</key><array/></dict></plist>`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		images, err := parseInfo(answer)
		for _, i := range images {
			if err != nil || i.inMemory() && !strings.HasPrefix(i.path, "ram://") {
				t.Errorf("parseInfo(%q) = %+v, %v", answer, images, err)
			}
		}
		if device, err := parseDevice(answer); err == nil {
			if number, ok := strings.CutPrefix(device, "/dev/disk"); !ok || !isNumber(number) || !strings.HasPrefix(string(answer), device) {
				t.Errorf("parseDevice(%q) = %q", answer, device)
			}
		}
	})
}
