package finding

import "testing"

// A secret is hidden once, however often it is named; nothing is no secret.
func TestHide(t *testing.T) {
	r := &Report{}
	r.Hide("", "eyJ0.secret", "eyJ0.secret")
	if len(r.hidden) != 1 {
		t.Errorf("%d secrets are hidden, want 1", len(r.hidden))
	}
	if got, want := r.presentable("says\neyJ0.secret\tand \x1bmore"), "says REDACTED and ?more"; got != want {
		t.Errorf("presentable: %q, want %q", got, want)
	}
}

func TestAdviceWith(t *testing.T) {
	a := Advice{Means: "{user} and {host}", Do: "see {host}, {other}"}.With("host", "h", "user", "{host}")
	if want := (Advice{Means: "{host} and h", Do: "see h, {other}"}); a != want {
		t.Errorf("filled in: %+v, want %+v", a, want)
	}
}
