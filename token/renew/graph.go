package renew

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/token/entra"
)

// A RefusedError is Microsoft Graph's refusal to add or remove a certificate.
type RefusedError struct {
	Credential string
	What       string // "add the new certificate to the app"
	ObjectID   string // of the app registration, as configured
	Status     int    // of HTTP
	Code       string // Graph's word, such as Authorization_RequestDenied; "" where it gave none
	Message    string // its text, on one line
	RequestID  string // for Microsoft's support
	RetryAfter time.Duration
}

func (e *RefusedError) Error() string {
	s := fmt.Sprintf("credential %q: Microsoft Graph refused to %s (HTTP %d", e.Credential, e.What, e.Status)
	if e.Code != "" {
		s += ", " + e.Code
	}
	s += ")"
	if e.Message != "" {
		s += fmt.Sprintf(": %q", e.Message)
	}
	if e.RequestID != "" {
		s += " (request-id " + e.RequestID + ")"
	}
	return s
}

// Temporary reports whether waiting may help without anybody's hand.
func (e *RefusedError) Temporary() bool {
	return e.Status == http.StatusTooManyRequests || e.Status/100 == 5
}

// Hint says what the refusal means and what to do about it.
func (e *RefusedError) Hint() string {
	text := strings.ToLower(e.Code + " " + e.Message)
	switch {
	case e.Temporary():
		return "Microsoft is busy; it is tried again"
	case strings.Contains(text, "policy") || strings.Contains(text, "lifetime"):
		return "the tenant's app management policy forbids such a certificate; let an administrator of Entra exempt the app, or allow the life that the present certificate has"
	case e.Status == http.StatusNotFound:
		return fmt.Sprintf("object_id: %s is not that of the app registration; it is the Object ID on the page \"Overview\" of the app registration, not the one of the enterprise application", e.ObjectID)
	case e.Status == http.StatusUnauthorized || strings.Contains(text, "proof"):
		return "Graph did not take the proof: see that object_id: is the Object ID of the app registration (not of the enterprise application, and not the client ID) " +
			"and that this machine's clock is right (timedatectl); where Microsoft has changed the audience, write it under tenant.endpoints.proof_audience"
	case e.Status == http.StatusForbidden:
		return "the app may not change its own certificates; see that object_id: is that of the app registration of client_id:, " +
			"else give it the application permission Application.ReadWrite.OwnedBy with consent, and make it its own owner"
	}
	return "replace the certificate by hand, as the documentation describes, and show this answer to Microsoft's support"
}

// An UnreachableError tells that Graph gave no answer, or one that is not its own.
type UnreachableError struct {
	Credential string
	What       string // as in [RefusedError]
	Host       string // who was asked
	Status     int    // HTTP's, if an answer came; else 0
	Problem    string // "gave no answer: …", follows the host
	RetryAfter time.Duration
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("credential %q: asking Microsoft Graph to %s: %s %s", e.Credential, e.What, e.Host, e.Problem)
}

// Temporary is always true.
func (e *UnreachableError) Temporary() bool { return true }

// Hint says where to look.
func (e *UnreachableError) Hint() string {
	return fmt.Sprintf("see that this machine reaches https://%s, which is another host than the one that gives tokens (firewall, proxy, tenant.endpoints.graph); it is tried again", e.Host)
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// addKey adds the certificate of e to the app, by the identity that is in use, and returns the name
// that Entra gave it.
// https://learn.microsoft.com/graph/api/application-addkey
func (k *Keeper) addKey(ctx context.Context, by entra.KeyPair, e *entry) (keyID string, err error) {
	id, err := k.pair(e).Read(time.Now())
	if err != nil {
		return "", err
	}
	body := map[string]any{
		"keyCredential":      map[string]string{"type": "AsymmetricX509Cert", "usage": "Verify", "key": base64.StdEncoding.EncodeToString(id.Certificate.Raw)},
		"passwordCredential": nil,
	}
	var answer struct {
		KeyID string `json:"keyId"`
	}
	err = k.ask(ctx, by, "addKey", "add the new certificate to the app", body, &answer)
	return answer.KeyID, err
}

// removeKey takes a certificate from the app, by the identity that is in use. That it is not there
// is no error.
// https://learn.microsoft.com/graph/api/application-removekey
func (k *Keeper) removeKey(ctx context.Context, by entra.KeyPair, keyID string) error {
	err := k.ask(ctx, by, "removeKey", "remove a former certificate from the app", map[string]any{"keyId": keyID}, nil)
	if e, ok := errors.AsType[*RefusedError](err); ok && strings.Contains(strings.ToLower(e.Message), "no credentials found") {
		return nil
	}
	return err
}

// ask makes one request to Graph, with a token and a proof of the same identity.
func (k *Keeper) ask(ctx context.Context, by entra.KeyPair, action, what string, body map[string]any, answer any) error {
	token, err := k.token(ctx, by, k.Graph+"/.default")
	if err != nil {
		return err
	}
	id, err := by.Read(time.Now())
	if err != nil {
		return err
	}
	proof, err := id.Possession(k.Audience, k.ObjectID, time.Now())
	if err != nil {
		return err
	}
	body["proof"] = string(proof)
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("%s/v1.0/applications/%s/%s", k.Graph, url.PathEscape(k.ObjectID), action), bytes.NewReader(data))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+string(token.Access))
	r.Header.Set("Content-Type", "application/json")
	return k.do(r, what, []string{string(proof), string(token.Access)}, answer)
}

// do makes a request and reads the answer. What is in secrets shows in no error.
func (k *Keeper) do(r *http.Request, what string, secrets []string, answer any) error {
	client := k.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(r)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // its own text repeats the URL
		}
		return &UnreachableError{Credential: k.Credential, What: what, Host: r.URL.Host, Problem: "gave no answer: " + line(err.Error(), secrets)}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return &UnreachableError{Credential: k.Credential, What: what, Host: r.URL.Host, Status: resp.StatusCode, Problem: "gave an answer that broke off: " + line(err.Error(), secrets)}
	}
	if resp.StatusCode/100 != 2 {
		return k.refused(resp, what, data, secrets)
	}
	if answer != nil {
		_ = json.Unmarshal(data, answer) // taken, says the status: what was added proves itself at the next step
	}
	return nil
}

// refused reads Graph's error.
// https://learn.microsoft.com/graph/errors
func (k *Keeper) refused(resp *http.Response, what string, data []byte, secrets []string) error {
	var body struct {
		Error struct {
			Code       string `json:"code"`
			Message    string `json:"message"`
			InnerError struct {
				RequestID string `json:"request-id"`
			} `json:"innerError"`
		} `json:"error"`
	}
	_ = json.Unmarshal(data, &body) // what is not Graph's has no words for us
	e := &RefusedError{
		Credential: k.Credential, What: what, ObjectID: k.ObjectID, Status: resp.StatusCode,
		Code: line(body.Error.Code, secrets), Message: line(body.Error.Message, secrets), RequestID: line(body.Error.InnerError.RequestID, secrets),
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = min(time.Duration(s)*time.Second, backoffMost)
	}
	if e.Code == "" && e.Message == "" {
		return &UnreachableError{Credential: k.Credential, What: what, Host: resp.Request.URL.Host, Status: resp.StatusCode, RetryAfter: e.RetryAfter,
			Problem: fmt.Sprintf("answered with HTTP %d and nothing that Microsoft Graph would say", resp.StatusCode)}
	}
	return e
}

// line makes a stranger's text fit for a log line, without our secrets.
func line(s string, secrets []string) string {
	for _, secret := range secrets {
		if secret != "" {
			s = strings.ReplaceAll(s, secret, entra.Redacted)
		}
	}
	return entra.OneLine(s, entra.MaxText)
}
