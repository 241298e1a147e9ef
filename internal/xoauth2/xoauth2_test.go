package xoauth2

import (
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
)

// Microsoft's example, from the page that the package comment names.
const (
	vectorUser  = "test@contoso.onmicrosoft.com"
	vectorToken = "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA"
	vector      = "dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQuY29tAWF1dGg9QmVhcmVyIEV3QkFBbDNCQUFVRkZwVUFvN0ozVmUwYmpMQldaV0NjbFJDM0VvQUEBAQ=="
)

func TestClient(t *testing.T) {
	c := NewClient(vectorUser, vectorToken)
	mechanism, initial, err := c.Start()
	if got := base64.StdEncoding.EncodeToString(initial); mechanism != "XOAUTH2" || got != vector || err != nil {
		t.Errorf("got %q, %q, %v, want XOAUTH2 and %q", mechanism, got, err, vector)
	}
	// What Google says to a token that it does not take.
	answer, err := c.Next([]byte(`{"status":"401","schemes":"bearer","scope":"https://mail.google.com/"}`))
	if answer == nil || len(answer) != 0 || err != nil {
		t.Errorf("to the error: got %q, %v, want an empty answer", answer, err)
	}
}

var errRefused = errors.New("no FullAccess")

// taker is a server that takes Microsoft's example only.
func taker(challenge []byte) sasl.Server {
	return NewServer(func(user, token string) error {
		if user != vectorUser || token != vectorToken {
			return errRefused
		}
		return nil
	}, func(error) []byte { return challenge })
}

func TestServer(t *testing.T) {
	right, wrong := "user="+vectorUser+"\x01auth=Bearer "+vectorToken+"\x01\x01", "user=a@b.c\x01auth=Bearer x\x01\x01"
	google := []byte(`{"status":"401"}`)
	for _, tc := range []struct {
		name      string
		challenge []byte
		said      []string // "nil" is none yet
		want      []string // challenge, "done", or the error
	}{
		{"with the command", nil, []string{right}, []string{"done"}},
		{"after an empty challenge", nil, []string{"nil", right}, []string{"challenge ", "done"}},
		{"refused", nil, []string{wrong}, []string{errRefused.Error()}},
		{"refused after an empty challenge", nil, []string{"nil", wrong}, []string{"challenge ", errRefused.Error()}},
		{"taken at Google", google, []string{right}, []string{"done"}},
		{"refused at Google", google, []string{wrong, ""}, []string{`challenge {"status":"401"}`, errRefused.Error()}},
		{"a second try in the answer", google, []string{wrong, right}, []string{`challenge {"status":"401"}`, errRefused.Error()}},
		{"malformed at Google", google, []string{"x"}, []string{ErrMalformed.Error()}},
		{"empty", nil, []string{""}, []string{ErrMalformed.Error()}},
		{"empty after an empty challenge", nil, []string{"nil", ""}, []string{"challenge ", ErrMalformed.Error()}},
		{"after the end", nil, []string{right, right}, []string{"done", sasl.ErrUnexpectedClientResponse.Error()}},
		{"after a refusal", nil, []string{wrong, right}, []string{errRefused.Error(), sasl.ErrUnexpectedClientResponse.Error()}},
		{"after Google's refusal", google, []string{wrong, "", right}, []string{`challenge {"status":"401"}`, errRefused.Error(), sasl.ErrUnexpectedClientResponse.Error()}},
	} {
		s := taker(tc.challenge)
		for i, said := range tc.said {
			response := []byte(said)
			if said == "nil" {
				response = nil
			}
			if got := outcome(s.Next(response)); got != tc.want[i] {
				t.Errorf("%s: to %q: got %q, want %q", tc.name, said, got, tc.want[i])
			}
		}
	}
}

func outcome(challenge []byte, done bool, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case done:
		return "done"
	}
	return "challenge " + string(challenge)
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		payload     string
		user, token string // both empty for a refusal
	}{
		{"user=a@b.c\x01auth=Bearer x\x01\x01", "a@b.c", "x"},
		{"user=a=b\x01auth=Bearer x y=\x01\x01", "a=b", "x y="},
		{"", "", ""},
		{"user=a\x01auth=Bearer x\x01", "", ""},
		{"user=a\x01auth=Bearer x\x01\x01\x01", "", ""},
		{"user=a\x01auth=Bearer x\x01\x01z", "", ""},
		{"user=\x01auth=Bearer x\x01\x01", "", ""},
		{"user=a\x01auth=Bearer \x01\x01", "", ""},
		{"user=a\x01auth=Basic x\x01\x01", "", ""},
		{"auth=Bearer x\x01user=a\x01\x01", "", ""},
		{"n,a=a,\x01auth=Bearer x\x01\x01", "", ""}, // OAUTHBEARER, RFC 7628
	} {
		user, token, ok := parse(tc.payload)
		if ok != (tc.user != "") || ok && (user != tc.user || token != tc.token) {
			t.Errorf("%q: got %q, %q, %v", tc.payload, user, token, ok)
		}
	}
}

// grammar reads a response in another way than parse does.
var grammar = regexp.MustCompile(`(?s)\Auser=([^\x01]+)\x01auth=Bearer ([^\x01]+)\x01\x01\z`)

func FuzzServer(f *testing.F) {
	f.Fuzz(func(t *testing.T, response []byte) {
		var user, token string
		asked := 0
		s := NewServer(func(u, to string) error { user, token = u, to; asked++; return nil }, nil)
		_, done, err := s.Next(append([]byte{}, response...))
		want := grammar.FindStringSubmatch(string(response))
		switch {
		case !done:
			t.Errorf("%q: not the end", response)
		case want == nil && (err != ErrMalformed || asked > 0):
			t.Errorf("%q: read as user %q, token %q, %v", response, user, token, err)
		case want != nil && (err != nil || asked != 1 || user != want[1] || token != want[2]):
			t.Errorf("%q: read as user %q, token %q, %v, want %q", response, user, token, err, want[1:])
		}
		if err != nil && len(response) > 20 && strings.Contains(err.Error(), string(response)) {
			t.Error("the error shows the response")
		}
		if want == nil {
			return
		}
		if _, back, _ := NewClient(user, token).Start(); string(back) != string(response) {
			t.Errorf("%q: the client says %q", response, back)
		}
	})
}
