package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestRestart changes each key of both services' sections, one at a time: it is either taken up when
// the file is loaded again, and then stands here, or it is said to need a restart.
func TestRestart(t *testing.T) {
	live := map[string]bool{
		"milter.queue_ceiling": true, "milter.queue_socket": true, "milter.queue_interval": true, // the queue is asked anew
		"milter.mode": true, "milter.received": true, "milter.classes_file": true,
		"token.peers": true, "token.token_files": true, "token.recipients_unseen": true,
	}
	for name, section := range map[string]func(*Site) any{"milter": func(c *Site) any { return &c.Milter }, "token": func(c *Site) any { return &c.Token }} {
		typ := reflect.TypeOf(section(Default())).Elem()
		for i := range typ.NumField() {
			key := name + "." + typ.Field(i).Tag.Get("yaml")
			c := Default()
			switch v := reflect.ValueOf(section(c)).Elem().Field(i); v.Kind() {
			case reflect.String:
				v.SetString("another")
			case reflect.Int, reflect.Int64:
				v.SetInt(7)
			case reflect.Slice:
				v.Set(reflect.ValueOf([]string{"another"}))
			default:
				t.Fatalf("%s has the kind %s, which the test does not know", key, v.Kind())
			}
			got := map[string][]string{"milter": c.MilterRestart(Default()), "token": c.TokenRestart(Default())}
			want := []string{key}
			if live[key] {
				want = []string{}
			}
			if !slices.Equal(got[name], want) {
				t.Errorf("%s changed: %v needs a restart, want %v", key, got[name], want)
			}
		}
	}
}

// TestRestartOfRecord: its files are opened once, and all else about it is taken up.
func TestRestartOfRecord(t *testing.T) {
	was := Default()
	now := *was
	now.Record = Record{Off: true, Recipients: "off", Days: 1, Size: 1, Page: true, MilterFile: "/x", TokenFile: "/y"}
	if got := slices.Concat(now.MilterRestart(was), now.TokenRestart(was)); !slices.Equal(got, []string{"record.milter_file", "record.token_file"}) {
		t.Errorf("%v need a restart", got)
	}
}

// TestRestartOfTenant: the tenant's name is part of where a shared store keeps what it counts.
func TestRestartOfTenant(t *testing.T) {
	for _, tc := range []struct {
		store string
		want  []string
	}{{"bolt:/x", []string{}}, {"redis://h:6379/0", []string{"tenant.id"}}} {
		was := Default()
		was.Milter.Store, was.Token.Store = tc.store, tc.store
		now := *was
		now.Tenant.ID = "fabrikam.com"
		if m, k := now.MilterRestart(was), now.TokenRestart(was); !slices.Equal(m, tc.want) || !slices.Equal(k, tc.want) {
			t.Errorf("%s: %v and %v, want %v", tc.store, m, k, tc.want)
		}
	}
}

// TestAddresses: where the services can be asked is known from a file that is wrong, as far as it
// tells.
func TestAddresses(t *testing.T) {
	const token, milter = "127.0.0.1:9726", "127.0.0.1:9725"
	good := read(t, "testdata/good/minimal.yaml")
	const sections = "token:\n  http: localhost:9800 # here\nmilter: {listen: unix:/x, http: \"localhost:9801\"}\n"
	for _, tc := range []struct{ name, text, token, milter string }{
		{"good", good, token, milter},
		{"good, elsewhere", good + sections, "localhost:9800", "localhost:9801"},
		{"unknown key", "nonsense: 1\n" + good + sections, "localhost:9800", "localhost:9801"},
		{"no mailbox", sections, "localhost:9800", "localhost:9801"},
		{"one is wrong", "token: {http: [a]}\nmilter: {http: off}\n", token, ""},
		{"no YAML", good + sections + "tenant [\n", "localhost:9800", "localhost:9801"},
		{"no YAML, off", "tenant [\ntoken:\n  http: off\n", "", milter},
		{"no YAML, another section's", "tenant [\nother:\n  http: 127.0.0.1:1\n", token, milter},
		{"empty", "", token, milter},
	} {
		file := filepath.Join(t.TempDir(), "sendas.yaml")
		write(t, file, tc.text)
		if k, m := Addresses(file); k != tc.token || m != tc.milter {
			t.Errorf("%s: %q and %q, want %q and %q", tc.name, k, m, tc.token, tc.milter)
		}
		os.Remove(file)
		if k, m := Addresses(file); k != token || m != milter {
			t.Errorf("no file: %q and %q, want the defaults", k, m)
		}
	}
	if strings.Contains(milter, token) {
		t.Error("the two defaults are one")
	}
}
