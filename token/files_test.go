package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/token/entra"
)

// rolling is a source whose token changes every hour, 20 minutes before its end, as a Refresher's
// does.
type rolling struct {
	mu    sync.Mutex // guards what follows
	name  string
	start time.Time
	err   error
	block bool // no token yet
	asked int
}

func (r *rolling) set(err error, block bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.block = err, block
}

func (r *rolling) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

func (r *rolling) Token(ctx context.Context) (*entra.Token, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if r.block {
		r.mu.Unlock()
		<-ctx.Done()
		r.mu.Lock()
		return nil, ctx.Err()
	}
	if r.err != nil {
		return nil, r.err
	}
	n := int(time.Since(r.start) / time.Hour)
	return &entra.Token{Access: entra.Secret(fmt.Sprintf("eyJ.%s.%d", r.name, n)), Expires: r.start.Add(time.Duration(n)*time.Hour + 80*time.Minute)}, nil
}

// wantFile compares a file with what the plugin's source (token_store.cc, 0.27) reads.
func wantFile(t *testing.T, path, access, user string, expires time.Time) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	var got map[string]string // the plugin takes strings for all
	if err := json.Unmarshal(b, &got); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	for key, want := range map[string]string{"access_token": access, "expiry": fmt.Sprint(expires.Unix()), "user": user, "refresh_window": "0", "client_secret": ""} {
		if got[key] != want {
			t.Errorf("%s: %s is %q, want %q", path, key, got[key], want)
		}
	}
	// The plugin refuses a file without the key, and must find nothing to ask anybody with.
	if refresh, ok := got["refresh_token"]; !ok || refresh != "" {
		t.Errorf("%s: refresh_token is %q, %v, want an empty one", path, refresh, ok)
	}
	if scheme, _, _ := strings.Cut(got["token_endpoint"], ":"); scheme != "sendas" {
		t.Errorf("%s: token_endpoint is %q, want a scheme that libcurl does not know", path, got["token_endpoint"])
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range list {
		s = append(s, e.Name())
	}
	return s
}

// inBubble runs Files for two mailboxes in a bubble where time stands still.
func inBubble(t *testing.T, story func(t *testing.T, f *Files, src *rolling, log *logtest.Buffer)) {
	synctest.Test(t, func(t *testing.T) {
		log := &logtest.Buffer{}
		f := &Files{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(log, nil))}
		src := &rolling{name: "app", start: time.Now()}
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); synctest.Wait() }()
		go f.Run(ctx)
		synctest.Wait()
		story(t, f, src, log)
		if strings.Contains(log.String(), "eyJ") {
			t.Errorf("the log has a token: %s", log)
		}
	})
}

func TestTokenFiles(t *testing.T) {
	inBubble(t, func(t *testing.T, f *Files, src *rolling, log *logtest.Buffer) {
		time.Sleep(time.Hour + time.Second) // between two rounds
		if got := names(t, f.Dir); got != nil {
			t.Errorf("before a configuration there are %q", got)
		}
		f.Use([]File{{"erp@contoso.com", "erp@contoso.com", src}, {"a/b%c@contoso.com", "a/b%c@contoso.com", src}, {"*@contoso.de", "", src}})
		synctest.Wait()
		if got, want := names(t, f.Dir), []string{"*@contoso.de", "a%2Fb%25c@contoso.com", "erp@contoso.com"}; !slices.Equal(got, want) {
			t.Fatalf("files %q, want %q", got, want)
		}
		path := filepath.Join(f.Dir, "erp@contoso.com")
		wantFile(t, path, "eyJ.app.1", "erp@contoso.com", src.start.Add(140*time.Minute))
		wantFile(t, filepath.Join(f.Dir, "*@contoso.de"), "eyJ.app.1", "", src.start.Add(140*time.Minute))
		if src.count() != 1 {
			t.Errorf("asked %d times for the token of one credential", src.count())
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v, want 0600", fi.Mode(), err)
		}
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Minute)
		if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("a file that was good was written again: %v", err)
		}
		time.Sleep(time.Minute + filesEvery) // a new token, 20 minutes before the old one ends
		synctest.Wait()
		wantFile(t, path, "eyJ.app.2", "erp@contoso.com", src.start.Add(200*time.Minute))

		f.Use([]File{{"erp@contoso.com", "erp@contoso.com", src}}) // two mailboxes leave
		synctest.Wait()
		if got, want := names(t, f.Dir), []string{"erp@contoso.com"}; !slices.Equal(got, want) {
			t.Errorf("files %q, want %q", got, want)
		}
		if n := strings.Count(log.String(), "token file removed"); n != 2 || strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("log %s", log)
		}
		f.Use(nil)
		synctest.Wait()
		if got := names(t, f.Dir); got != nil {
			t.Errorf("without mailboxes there are %q", got)
		}
	})
}

// TestTokenFilesInTrouble: one credential in trouble keeps no other from its file, and its own old
// file stays.
func TestTokenFilesInTrouble(t *testing.T) {
	inBubble(t, func(t *testing.T, f *Files, src *rolling, log *logtest.Buffer) {
		began := time.Now()
		other := &rolling{name: "other", start: began, block: true}
		f.Use([]File{{"scan@contoso.com", "scan@contoso.com", other}, {"erp@contoso.com", "erp@contoso.com", src}})
		time.Sleep(filesWait + time.Second)
		if got, want := names(t, f.Dir), []string{"erp@contoso.com"}; !slices.Equal(got, want) {
			t.Errorf("while one credential waits there are %q, want %q", got, want)
		}
		other.set(nil, false)
		time.Sleep(2 * filesEvery)
		synctest.Wait()
		path := filepath.Join(f.Dir, "scan@contoso.com")
		wantFile(t, path, "eyJ.other.0", "scan@contoso.com", began.Add(80*time.Minute))
		if !strings.Contains(log.String(), "the token file is kept again") {
			t.Errorf("the log does not say that the trouble is over: %s", log)
		}
		other.set(&entra.FileError{Path: "/etc/sendas/s", Problem: "is empty"}, false)
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		wantFile(t, path, "eyJ.other.0", "scan@contoso.com", began.Add(80*time.Minute))
		wantFile(t, filepath.Join(f.Dir, "erp@contoso.com"), "eyJ.app.3", "erp@contoso.com", began.Add(260*time.Minute))
		if n := strings.Count(log.String(), "is empty"); n != 1 {
			t.Errorf("one trouble was logged %d times: %s", n, log)
		}
	})
}

// TestTokenFilesLeaveOthersAlone: what sendas did not write is neither replaced nor removed.
func TestTokenFilesLeaveOthersAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *Files, src *rolling, log *logtest.Buffer) {
		plugins := `{"access_token": "at", "expiry": "0", "refresh_token": "0.AXoA"}` // its own, from "sasl-xoauth2-tool get-token"
		target := filepath.Join(t.TempDir(), "target")
		for path, text := range map[string]string{
			filepath.Join(f.Dir, "erp@contoso.com"): plugins, filepath.Join(f.Dir, "gone@contoso.com"): plugins,
			filepath.Join(f.Dir, "notes.txt"): "do not delete", filepath.Join(f.Dir, tempPrefix+"123"): "half", target: plugins,
		} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(target, filepath.Join(f.Dir, "link@contoso.com")); err != nil {
			t.Fatal(err)
		}
		f.Use([]File{{"erp@contoso.com", "erp@contoso.com", src}, {"link@contoso.com", "link@contoso.com", src}, {"scan@contoso.com", "scan@contoso.com", src}})
		synctest.Wait()
		if got, want := names(t, f.Dir), []string{"erp@contoso.com", "gone@contoso.com", "link@contoso.com", "notes.txt", "scan@contoso.com"}; !slices.Equal(got, want) {
			t.Errorf("files %q, want %q", got, want)
		}
		for _, path := range []string{filepath.Join(f.Dir, "erp@contoso.com"), target} {
			if b, err := os.ReadFile(path); err != nil || string(b) != plugins {
				t.Errorf("%s was changed: %q, %v", path, b, err)
			}
		}
		if s := log.String(); strings.Count(s, "not from sendas") != 2 || !strings.Contains(s, "move the file away") || strings.Contains(s, "0.AXoA") {
			t.Errorf("log %s", s)
		}
	})
}

func TestTokenFileOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		inBubble(t, func(t *testing.T, f *Files, src *rolling, log *logtest.Buffer) {
			f.UID = 1 // never ours
			f.Use([]File{{"erp@contoso.com", "erp@contoso.com", src}})
			synctest.Wait()
			if s := log.String(); names(t, f.Dir) != nil || !strings.Contains(s, "to whom the service may not give files") || !strings.Contains(s, "chmod 2750") {
				t.Errorf("files %q, log %s", names(t, f.Dir), s)
			}
		})
		return
	}
	for _, tc := range []struct {
		name             string
		dirUID, dirGID   int
		uid, gid         int
		wantUID, wantGID int
		wantMode         fs.FileMode
	}{
		{"the folder's owner", 4242, 4343, 0, 0, 4242, 4343, 0o600},
		{"somebody else", 4242, 4343, 5252, 5353, 5252, 5353, 0o600},
		{"the folder's group reads", 0, 4343, 0, 0, 0, 4343, 0o640},
	} {
		inBubble(t, func(t *testing.T, f *Files, src *rolling, _ *logtest.Buffer) {
			if err := os.Chown(f.Dir, tc.dirUID, tc.dirGID); err != nil {
				t.Fatal(err)
			}
			f.UID, f.GID = tc.uid, tc.gid
			path := filepath.Join(f.Dir, "erp@contoso.com")
			want := ownership{tc.wantUID, tc.wantGID, tc.wantMode}
			for _, step := range []string{"made", "changed by somebody"} {
				f.Use([]File{{"erp@contoso.com", "erp@contoso.com", src}})
				synctest.Wait()
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				if got := ownerOf(info); got != want {
					t.Errorf("%s, %s: %+v, want %+v", tc.name, step, got, want)
				}
				if err := errors.Join(os.Chmod(path, 0o644), os.Chown(path, 0, 0)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestTokenFilesFolder(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(dir string) error
		want string
	}{
		{"none", func(dir string) error { return os.Remove(dir) }, "install -d -o sendas-token"},
		{"a file", func(dir string) error { return errors.Join(os.Remove(dir), os.WriteFile(dir, nil, 0o600)) }, "is no folder"},
		{"everybody's", func(dir string) error { return os.Chmod(dir, 0o777) }, "is open to every user"},
	} {
		inBubble(t, func(t *testing.T, f *Files, src *rolling, log *logtest.Buffer) {
			if err := tc.make(f.Dir); err != nil {
				t.Fatal(err)
			}
			f.Use([]File{{"erp@contoso.com", "erp@contoso.com", src}})
			time.Sleep(time.Hour)
			if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, tc.want) || src.count() != 0 {
				t.Errorf("%s: asked %d times, log %s", tc.name, src.asked, s)
			}
			if err := errors.Join(os.RemoveAll(f.Dir), os.Mkdir(f.Dir, 0o700)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(filesEvery)
			synctest.Wait()
			if got := names(t, f.Dir); !slices.Equal(got, []string{"erp@contoso.com"}) {
				t.Errorf("%s: once it was mended there are %q", tc.name, got)
			}
		})
	}
}
