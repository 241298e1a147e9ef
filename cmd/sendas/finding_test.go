package main

import "testing"

// A secret is hidden once, however often it is named; nothing is no secret.
func TestHide(t *testing.T) {
	r := &report{}
	r.hide("", "eyJ0.secret", "eyJ0.secret")
	if len(r.hidden) != 1 {
		t.Errorf("%d secrets are hidden, want 1", len(r.hidden))
	}
	if got, want := r.presentable("says\neyJ0.secret\tand \x1bmore"), "says REDACTED and ?more"; got != want {
		t.Errorf("presentable: %q, want %q", got, want)
	}
}

func TestAdviceWith(t *testing.T) {
	a := advice{means: "{user} and {host}", do: "see {host}, {other}"}.with("host", "h", "user", "{host}")
	if want := (advice{means: "{host} and h", do: "see h, {other}"}); a != want {
		t.Errorf("filled in: %+v, want %+v", a, want)
	}
}
