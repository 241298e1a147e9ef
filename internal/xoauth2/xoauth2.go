// Package xoauth2 is the SASL mechanism XOAUTH2, by which a program shows an access token to
// Exchange Online, in the shape of go-sasl, which has no such mechanism itself.
//
// There is one response, in which user and token stand between bytes 0x01. Microsoft refuses it at
// once. Google sends an error in JSON first and refuses when the client has answered it; a client
// that follows both gives an empty answer.
// https://learn.microsoft.com/exchange/client-developer/legacy-protocols/how-to-authenticate-an-imap-pop-smtp-application-by-using-oauth
package xoauth2

import (
	"errors"
	"strings"

	"github.com/emersion/go-sasl"
)

// Name is the mechanism's name in AUTH.
const Name = "XOAUTH2"

// client is the side of the program that has a token.
type client struct{ user, token string }

// NewClient returns the side of a program that has an access token for a mailbox. What it returns
// as the initial response may be sent with the command, or in answer to an empty challenge, which
// keeps the token out of a line that a server may repeat in an error.
func NewClient(user, token string) sasl.Client { return &client{user, token} }

// Start returns the one response that there is.
func (c *client) Start() (mechanism string, initial []byte, err error) {
	return Name, []byte("user=" + c.user + "\x01auth=Bearer " + c.token + "\x01\x01"), nil
}

// Next answers an error that comes as a challenge, so that the refusal itself can come.
func (c *client) Next([]byte) ([]byte, error) { return []byte{}, nil }

// ErrMalformed says that a response is not one of the mechanism. It does not show the response.
var ErrMalformed = errors.New("not user= and auth=Bearer, each with 0x01 behind it, and a last 0x01")

// server is the side that takes tokens.
type server struct {
	authenticate func(user, token string) error
	challenge    func(error) []byte
	refused      error // to be told after the challenge
	done         bool
}

// NewServer returns the side that takes tokens, for one AUTH. authenticate is asked once, if the
// response is well-formed; its error refuses. Where challenge returns something for that error, the
// client has to answer it before it hears the refusal, as at Google; nil is Microsoft's way.
func NewServer(authenticate func(user, token string) error, challenge func(refused error) []byte) sasl.Server {
	return &server{authenticate: authenticate, challenge: challenge}
}

// Next takes the response, which is nil before there is one.
func (s *server) Next(response []byte) (challenge []byte, done bool, err error) {
	switch {
	case s.refused != nil:
		s.done, err, s.refused = true, s.refused, nil
		return nil, true, err
	case s.done:
		return nil, true, sasl.ErrUnexpectedClientResponse
	case response == nil:
		return []byte{}, false, nil
	}
	user, token, ok := parse(string(response))
	if !ok {
		s.done = true
		return nil, true, ErrMalformed
	}
	if err = s.authenticate(user, token); err != nil && s.challenge != nil {
		if challenge = s.challenge(err); challenge != nil {
			s.refused = err
			return challenge, false, nil
		}
	}
	s.done = true
	return nil, true, err
}

// parse reads "user=" userName ^A "auth=Bearer " accessToken ^A ^A. Neither may be empty.
func parse(response string) (user, token string, ok bool) {
	parts := strings.Split(response, "\x01")
	if len(parts) != 4 || parts[2] != "" || parts[3] != "" {
		return "", "", false
	}
	user, isUser := strings.CutPrefix(parts[0], "user=")
	token, isToken := strings.CutPrefix(parts[1], "auth=Bearer ")
	return user, token, isUser && isToken && user != "" && token != ""
}
