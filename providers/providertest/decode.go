package providertest

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"

	"github.com/runenv/action/secret"
)

// Keys stands in for the broker's file: it gives a decode function, as
// providers get one, that fills a struct by its yaml tags from keys and
// refuses what the struct doesn't know. A string may stand for a
// secret.Value and for whatever has an UnmarshalText.
func Keys(keys map[string]any) func(any) error {
	return func(into any) error {
		v := reflect.ValueOf(into)
		if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
			return fmt.Errorf("decode wants a pointer to a struct, got %T", into)
		}
		return fill(v.Elem(), keys, "")
	}
}

func fill(into reflect.Value, from any, at string) error {
	src := reflect.ValueOf(from)
	if !src.IsValid() {
		return fmt.Errorf("key %s: null", at)
	}
	if text, ok := from.(string); ok {
		if into.Type() == reflect.TypeFor[secret.Value]() {
			into.Set(reflect.ValueOf(secret.FromString(text)))
			return nil
		}
		if u, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
			if err := u.UnmarshalText([]byte(text)); err != nil {
				return fmt.Errorf("key %s: %w", at, err)
			}
			return nil
		}
	}
	switch {
	case src.Type().AssignableTo(into.Type()):
		into.Set(src)
		return nil
	case into.Kind() == reflect.Pointer:
		p := reflect.New(into.Type().Elem())
		into.Set(p)
		return fill(p.Elem(), from, at)
	case src.Kind() == reflect.Map && into.Kind() == reflect.Struct:
		return fillStruct(into, src, at)
	case src.Kind() == reflect.Map && into.Kind() == reflect.Map:
		m := reflect.MakeMap(into.Type())
		for _, key := range src.MapKeys() {
			elem := reflect.New(into.Type().Elem()).Elem()
			if err := fill(elem, src.MapIndex(key).Interface(), join(at, key.String())); err != nil {
				return err
			}
			m.SetMapIndex(key, elem)
		}
		into.Set(m)
		return nil
	}
	return fmt.Errorf("key %s: a %s where a %s is meant", at, src.Kind(), into.Type())
}

func fillStruct(into, src reflect.Value, at string) error {
	for _, key := range src.MapKeys() {
		field, ok := fieldByTag(into, key.String())
		if !ok {
			return fmt.Errorf("unknown key %s", join(at, key.String()))
		}
		if err := fill(field, src.MapIndex(key).Interface(), join(at, key.String())); err != nil {
			return err
		}
	}
	return nil
}

func fieldByTag(into reflect.Value, name string) (reflect.Value, bool) {
	for i := range into.NumField() {
		tag, _, _ := strings.Cut(into.Type().Field(i).Tag.Get("yaml"), ",")
		if tag == name && tag != "" && tag != "-" {
			return into.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}
