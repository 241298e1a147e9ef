package cf

import (
	"slices"
	"testing"
)

func TestSeconds(t *testing.T) {
	for in, want := range map[string]int{"5d": 432000, "1": 86400, "90m": 5400, "30s": 30, "1w": 604800, "": 0, "x": 0, "d": 0} {
		if got := Seconds(in, 86400); got != want {
			t.Errorf("Seconds(%q) = %d, want %d", in, got, want)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []string
	}{
		{"", nil}, {" , ", nil}, {"a", []string{"a"}}, {"a, b  c", []string{"a", "b", "c"}},
		{"{ unix:x, default_action=accept }, inet:y:1", []string{"{ unix:x, default_action=accept }", "inet:y:1"}},
		{"check_policy_service { unix:x, a={b c} } permit", []string{"check_policy_service", "{ unix:x, a={b c} }", "permit"}},
		{"{ open a", []string{"{ open a"}}, {"} a", []string{"}", "a"}},
	} {
		if got := Split(tc.in); !slices.Equal(got, tc.want) {
			t.Errorf("Split(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
	if got := Braced("{ unix:x, default_action=accept }"); !slices.Equal(got, []string{"unix:x", "default_action=accept"}) {
		t.Errorf("Braced: %q", got)
	}
}

func TestUnspaced(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "bounce, notify": "bounce,notify", "a b\tc": "a,b,c", "{ unix:sendas/milter, default_action=tempfail }, inet:h:1": "{unix:sendas/milter,default_action=tempfail},inet:h:1",
		"check_policy_service { unix:x, default_action=DUNNO }, permit": "check_policy_service,{unix:x,default_action=DUNNO},permit",
	} {
		if got := Unspaced(in); got != want {
			t.Errorf("Unspaced(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestShown(t *testing.T) {
	for in, want := range map[string]string{
		"": "(empty)", "socketmap:unix:sendas/credentials:lease": "socketmap:unix:sendas/credentials:lease",
		"static:erp:hunter2": "static:REDACTED", "hash:/x inline:{ {a = erp:hunter2} }": "hash:/x inline:REDACTED",
	} {
		if got := Shown(in); got != want {
			t.Errorf("Shown(%q) = %q, want %q", in, got, want)
		}
	}
}
