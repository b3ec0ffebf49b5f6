package ramdisk

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

const (
	maxInfoBytes = 1 << 20 // an image takes about 1.5 KiB
	maxInfoDepth = 16      // a real one has 6
)

// An image is what `hdiutil info -plist` says of an attached disk image.
type image struct {
	path    string
	owner   int // -1: nothing is said
	devices []string
}

func (i image) has(device string) bool    { return slices.Contains(i.devices, device) }
func (i image) ownedBy(owners []int) bool { return slices.Contains(owners, i.owner) }
func (i image) inMemory() bool {
	sectors, ok := strings.CutPrefix(i.path, imagePrefix)
	return ok && isNumber(sectors)
}

// parseInfo reads the answer of `hdiutil info -plist`. It passes over keys that
// it doesn't know, and refuses what it can't read for certain.
func parseInfo(out []byte) ([]image, error) {
	if len(out) > maxInfoBytes {
		return nil, errors.New("the list is too long")
	}
	root, err := parsePlist(out)
	if err != nil {
		return nil, fmt.Errorf("the list can't be read: %w", err)
	}
	top, ok := root.(map[string]any)
	if !ok {
		return nil, errors.New("the list isn't one")
	}
	all, ok := top["images"].([]any)
	if !ok {
		return nil, errors.New("the list has no images")
	}
	var images []image
	for _, one := range all {
		dict, ok := one.(map[string]any)
		if !ok {
			return nil, errors.New("an image in the list isn't one")
		}
		i := image{owner: -1}
		if i.path, ok = dict["image-path"].(string); !ok {
			return nil, errors.New("an image in the list has no path")
		}
		if owner, ok := dict["owner-uid"].(number); ok {
			i.owner = int(owner)
		}
		entities, _ := dict["system-entities"].([]any)
		for _, e := range entities {
			entity, _ := e.(map[string]any)
			if device, ok := entity["dev-entry"].(string); ok {
				i.devices = append(i.devices, device)
			}
		}
		images = append(images, i)
	}
	return images, nil
}

// A number is a plist's integer.
type number int

// parsePlist reads a property list in XML: a dict is a map[string]any, an array
// an []any, a string itself, an integer a number, all else nil.
func parsePlist(text []byte) (any, error) {
	p := &plist{xml.NewDecoder(bytes.NewReader(text))}
	start, err := p.next()
	if err != nil {
		return nil, err
	}
	if start == nil || start.Name.Local != "plist" {
		return nil, errors.New("not a property list")
	}
	value, err := p.only()
	if err != nil {
		return nil, err
	}
	for {
		t, err := p.Token()
		if errors.Is(err, io.EOF) {
			return value, nil
		}
		if err != nil {
			return nil, err
		}
		if _, more := t.(xml.StartElement); more {
			return nil, errors.New("a second property list")
		}
	}
}

type plist struct{ *xml.Decoder }

// next is the next element in the one that is open, nil at its end.
func (p *plist) next() (*xml.StartElement, error) {
	for {
		t, err := p.Token()
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			return &t, nil
		case xml.EndElement:
			return nil, nil
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return nil, errors.New("text between elements")
			}
		}
	}
}

// only reads the one value in the element that is open, to its end.
func (p *plist) only() (any, error) {
	start, err := p.next()
	if err != nil {
		return nil, err
	}
	if start == nil {
		return nil, errors.New("an empty property list")
	}
	value, err := p.value(start, 0)
	if err != nil {
		return nil, err
	}
	if more, err := p.next(); err != nil || more != nil {
		return nil, errors.Join(err, errors.New("more than one value"))
	}
	return value, nil
}

func (p *plist) value(start *xml.StartElement, depth int) (any, error) {
	if depth > maxInfoDepth {
		return nil, errors.New("too deep")
	}
	switch start.Name.Local {
	case "dict":
		return p.dict(depth)
	case "array":
		return p.array(depth)
	case "string":
		return p.text()
	case "integer":
		text, err := p.text()
		if err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, errors.New("an integer that isn't one")
		}
		return number(n), nil
	case "true", "false", "data", "date", "real":
		_, err := p.text()
		return nil, err
	}
	return nil, errors.New("an unknown element")
}

func (p *plist) dict(depth int) (any, error) {
	dict := map[string]any{}
	for {
		start, err := p.next()
		if err != nil {
			return nil, err
		}
		if start == nil {
			return dict, nil
		}
		if start.Name.Local != "key" {
			return nil, errors.New("a value without a key")
		}
		key, err := p.text()
		if err != nil {
			return nil, err
		}
		if _, twice := dict[key]; twice {
			return nil, errors.New("a key that stands twice")
		}
		start, err = p.next()
		if err != nil {
			return nil, err
		}
		if start == nil {
			return nil, errors.New("a key without a value")
		}
		if dict[key], err = p.value(start, depth+1); err != nil {
			return nil, err
		}
	}
}

func (p *plist) array(depth int) (any, error) {
	array := []any{}
	for {
		start, err := p.next()
		if err != nil {
			return nil, err
		}
		if start == nil {
			return array, nil
		}
		value, err := p.value(start, depth+1)
		if err != nil {
			return nil, err
		}
		array = append(array, value)
	}
}

// text reads the element that is open, which holds no other.
func (p *plist) text() (string, error) {
	var text []byte
	for {
		t, err := p.Token()
		if err != nil {
			return "", err
		}
		switch t := t.(type) {
		case xml.StartElement:
			return "", errors.New("an element within text")
		case xml.EndElement:
			return string(text), nil
		case xml.CharData:
			text = append(text, t...)
		}
	}
}
