package entra

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestSecretDoesNotPrint(t *testing.T) {
	const hidden = "Q~8fVerySecret"
	s := Secret(hidden)
	tok := Token{Access: s, Expires: time.Unix(0, 0)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%10.3s", "%t"} {
		for _, v := range []any{s, &s, tok, &tok, []Secret{s}, map[string]Secret{"k": s}, map[Secret]int{s: 1}} {
			if got := fmt.Sprintf(verb, v); leaks(got, hidden) {
				t.Errorf("Sprintf(%q, %T) = %q, which shows the secret", verb, v, got)
			}
		}
	}
	for name, got := range map[string]string{
		"String": s.String(), "GoString": s.GoString(), "json": mustJSON(t, s), "json in struct": mustJSON(t, tok),
		"slog text": logged(s, false), "slog json": logged(s, true),
		"slog token": logged(tok, true), "Sprint": fmt.Sprint(s), "error": fmt.Errorf("with %v", s).Error(),
	} {
		if leaks(got, hidden) || !strings.Contains(got, "REDACTED") {
			t.Errorf("%s gives %q, want REDACTED in its place", name, got)
		}
	}
	if text, err := s.MarshalText(); err != nil || string(text) != Redacted {
		t.Errorf("MarshalText = %q, %v, want %s", text, err, Redacted)
	}
	if string(s) != hidden {
		t.Errorf("string(s) = %q, want the secret itself", string(s))
	}
}

// leaks looks for the secret as it is, in hexadecimal, and for its beginning.
func leaks(got, secret string) bool {
	hex := fmt.Sprintf("%x", secret)
	low := strings.ToLower(got)
	return strings.Contains(got, secret[:3]) || strings.Contains(strings.ReplaceAll(low, " ", ""), hex[:12])
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func logged(v any, asJSON bool) string {
	var b bytes.Buffer
	var h slog.Handler = slog.NewTextHandler(&b, nil)
	if asJSON {
		h = slog.NewJSONHandler(&b, nil)
	}
	slog.New(h).Info("x", "v", v)
	return b.String()
}
