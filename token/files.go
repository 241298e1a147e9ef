package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sendas/sendas/internal/safefile"
	"github.com/sendas/sendas/token/entra"
)

const (
	// filesEvery is how often the files are compared with the tokens in memory. It is far below the
	// 20 minutes by which a Refresher is ahead of a token's end, and it costs a read of each file.
	filesEvery = 15 * time.Second

	// filesWait bounds the wait for one credential that has no token yet, so that it does not hold
	// up the files of the others.
	filesWait = 5 * time.Second

	// tempPrefix begins the names of unfinished files. No mailbox begins with a full stop (RFC
	// 5321, section 4.1.2, Dot-string).
	tempPrefix = ".sendas-"

	// noEndpoint is the token_endpoint of our files. libcurl does not know the scheme, so it opens
	// no connection; the plugin logs the URL, which says whom to ask instead. It also marks a file
	// as ours.
	noEndpoint = "sendas://the-service-sendas-token-renews-this-file"
)

// A File is one file for the sasl-xoauth2 plugin.
type File struct {
	Mailbox string // the file's name is made of it; see FileName
	User    string // the user= of XOAUTH2; "" leaves it to the login in smtp_sasl_password_maps, as for a pattern
	Tokens  entra.Source
}

// Files keeps access tokens in files for Postfix with the sasl-xoauth2 plugin
// (https://github.com/tarickb/sasl-xoauth2, read and tried as of 0.27), for sites that prefer it to
// look-ups by socketmap. There are no leases then: nothing here keeps a mailbox below its limits.
//
// The plugin reads the file that smtp_sasl_password_maps names in the place of the password, once
// per AUTH. It wants a JSON object with refresh_token, which must be there though it may be empty,
// access_token, expiry (seconds since 1970 in a string, as a 32-bit int) and, from 0.25 on, user.
// While expiry has not come, it sends access_token as it is.
//
// From expiry on, and when the server answers AUTH with a challenge of status 400 or 401, the
// plugin posts the refresh token with the app's secret to token_endpoint, by itself and in every
// smtp(8) process, and without a limit of time. A file of ours gives it nothing to post: no secret,
// an empty refresh_token, and a token_endpoint that libcurl refuses before it opens a connection.
// So the try fails at once, AUTH fails without a word to Microsoft, and Postfix keeps the mail and
// tries again later; the plugin logs `Protocol "sendas" not supported`. This only happens when the
// service has been away, or without a new token, until the old one ended: files are renewed when
// the [Refresher] gets a new token, 20 minutes before that at the latest. A refresh_window of 0
// keeps a window of the site's own from shortening this.
//
// A file is replaced in one step. It belongs to UID and GID, by default to those who own the
// folder, with mode 0600. A service that is not root cannot give files away; let it own the folder,
// and Postfix's group read it, and the files have mode 0640:
//
//	install -d -o sendas-token -g postfix -m 2750 /var/spool/postfix/sendas-tokens
//
// A folder under the queue directory, named relative to it in the password map
// (erp@contoso.com:sendas-tokens/erp@contoso.com), serves smtp(8) chrooted and not. The plugin then
// cannot write there, and need not.
//
// The fields must not change after Run was called. All methods are safe for concurrent use.
type Files struct {
	Dir      string       // must exist
	UID, GID int          // who owns the files; 0 is the owner, or the group, of Dir
	Log      *slog.Logger // nil: none

	mu   sync.Mutex // guards what follows
	list []File
	used bool // Use was called
	wake chan struct{}

	told map[string]string // by file, the problem that was logged; only Run's goroutine uses it
}

// FileName returns the name of a mailbox's file in the folder: its address, or its pattern as it
// is, with the two characters changed that cannot stand there: "a/b@contoso.com" becomes
// "a%2Fb@contoso.com".
func FileName(mailbox string) string {
	return strings.NewReplacer("%", "%25", "/", "%2F").Replace(mailbox)
}

// Use puts a configuration into force: from now on there are these files and, of ours, no other.
// Use(nil) takes all away. What others have put into the folder stays.
func (f *Files) Use(list []File) {
	f.mu.Lock()
	f.list, f.used = list, true
	wake := f.wakerLocked()
	f.mu.Unlock()
	select {
	case wake <- struct{}{}:
	default: // Run has been told already
	}
}

// wakerLocked returns the channel that wakes Run; f.mu is held.
func (f *Files) wakerLocked() chan struct{} {
	if f.wake == nil {
		f.wake = make(chan struct{}, 1)
	}
	return f.wake
}

// Run keeps the files until ctx ends. The files stay then: a restart of the service must not stop
// mail. Call it once. Before the first Use it does nothing.
func (f *Files) Run(ctx context.Context) {
	f.mu.Lock()
	wake := f.wakerLocked()
	f.mu.Unlock()
	f.told = make(map[string]string)
	if f.Log == nil {
		f.Log = slog.New(slog.DiscardHandler)
	}
	t := time.NewTicker(filesEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-wake:
		}
		f.round(ctx)
	}
}

// round brings the folder up to date.
func (f *Files) round(ctx context.Context) {
	f.mu.Lock()
	list, used := f.list, f.used
	f.mu.Unlock()
	if !used {
		return
	}
	own, err := f.ownership()
	f.tell("", err)
	if err != nil {
		return
	}
	f.tidy(list)
	type answer struct {
		token *entra.Token
		err   error
	}
	answers := make(map[entra.Source]answer) // many mailboxes share a credential
	for _, x := range list {
		a, ok := answers[x.Tokens]
		if !ok {
			a.token, a.err = within(ctx, x.Tokens)
			answers[x.Tokens] = a
		}
		if ctx.Err() != nil {
			return
		}
		err := a.err
		if err == nil {
			err = f.keep(x, a.token, own)
		}
		f.tell(FileName(x.Mailbox), err)
	}
}

// within asks for a token and does not wait for long.
func within(ctx context.Context, s entra.Source) (*entra.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, filesWait)
	defer cancel()
	return s.Token(ctx)
}

// tell logs a problem when it is new, and that it has gone.
func (f *Files) tell(name string, err error) {
	path := filepath.Join(f.Dir, name)
	switch {
	case err == nil && f.told[name] != "":
		delete(f.told, name)
		f.Log.Info("the token file is kept again", "file", path)
	case err != nil && f.told[name] != err.Error():
		f.told[name] = err.Error()
		attrs := []any{"file", path, "error", err}
		var h interface{ Hint() string }
		if errors.As(err, &h) {
			attrs = append(attrs, "hint", h.Hint())
		}
		f.Log.Error("a token file cannot be kept; Postfix has the old token, or none", attrs...)
	}
}

// folderError tells what is wrong with the folder or a file in it, and what to type.
type folderError struct {
	path    string
	problem string // follows the path
	hint    string
	err     error // may be nil
}

func (e *folderError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("%q %s", e.path, e.problem)
	}
	return fmt.Sprintf("%q %s: %v", e.path, e.problem, e.err)
}
func (e *folderError) Unwrap() error { return e.err }
func (e *folderError) Hint() string  { return e.hint }

// ownership is whose a file is to be.
type ownership struct {
	uid, gid int
	mode     fs.FileMode
}

// ownership looks at the folder.
func (f *Files) ownership() (ownership, error) {
	install := "type: install -d -o sendas-token -g postfix -m 2750 " + f.Dir
	info, err := os.Stat(f.Dir)
	switch {
	case err != nil:
		return ownership{}, &folderError{f.Dir, "cannot be used", install, withoutPath(err)}
	case !info.IsDir():
		return ownership{}, &folderError{f.Dir, "is no folder", "name a folder in token.token_files", nil}
	case info.Mode().Perm()&0o002 != 0:
		return ownership{}, &folderError{f.Dir, "is open to every user of this machine, who could put other tokens there", install, nil}
	}
	o := ownerOf(info)
	if f.UID != 0 {
		o.uid = f.UID
	}
	if f.GID != 0 {
		o.gid = f.GID
	}
	// A file that stays ours is of use only if the group reads it.
	if o.mode = 0o600; o.uid == os.Geteuid() && o.gid != os.Getegid() {
		o.mode = 0o640
	}
	return o, nil
}

// ownerOf reads owner and mode of a file.
func ownerOf(info fs.FileInfo) ownership {
	o := safefile.OwnerOf(info)
	return ownership{o.UID, o.GID, info.Mode().Perm()}
}

// withoutPath drops operation and path from an error of the operating system.
func withoutPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// pluginFile is the content of a file. It holds the token in the clear: do not log it.
type pluginFile struct {
	RefreshToken  string `json:"refresh_token"` // always "": the plugin refuses a file without the key
	AccessToken   string `json:"access_token"`
	Expiry        string `json:"expiry"`
	User          string `json:"user,omitempty"`
	RefreshWindow string `json:"refresh_window"`
	TokenEndpoint string `json:"token_endpoint"`
}

// keep writes the file of a mailbox unless it is as it should be.
func (f *Files) keep(x File, t *entra.Token, own ownership) error {
	// The plugin reads expiry with stoi: a number beyond 32 bits would make the file unreadable to
	// it.
	want := pluginFile{AccessToken: string(t.Access), Expiry: strconv.FormatInt(min(t.Expires.Unix(), math.MaxInt32), 10),
		User: x.User, RefreshWindow: "0", TokenEndpoint: noEndpoint}
	path := filepath.Join(f.Dir, FileName(x.Mailbox))
	have, as, err := readTokenFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrPermission):
		return &folderError{path, "is there and may not be read by the service", "remove the file; the service makes it anew", nil}
	case err != nil || have.TokenEndpoint != noEndpoint:
		return &folderError{path, "is there and not from sendas: it may hold a refresh token", "move the file away", nil}
	case have == want && as == own:
		return nil
	}
	text, err := json.MarshalIndent(&want, "", "  ")
	if err != nil {
		return err
	}
	if err := writeTokenFile(path, append(text, '\n'), own); err != nil {
		return err
	}
	f.Log.Debug("token file written", "file", path, "expires", t.Expires)
	return nil
}

// readTokenFile reads a file and whose it is. A link or a FIFO, which whoever owns the folder could
// make, is an error.
func readTokenFile(path string) (p pluginFile, o ownership, err error) {
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return p, o, err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return p, o, err
	}
	if !info.Mode().IsRegular() {
		return p, o, errors.New("is not a regular file")
	}
	return p, ownerOf(info), json.NewDecoder(io.LimitReader(r, entra.MaxFile)).Decode(&p)
}

// writeTokenFile replaces a file in one step. Nobody but its owner can read it at any moment.
func writeTokenFile(path string, text []byte, own ownership) error {
	dir := filepath.Dir(path)
	err := safefile.Write(path, text, safefile.Options{Mode: own.mode, Owner: &safefile.Owner{UID: own.uid, GID: own.gid}, Temp: tempPrefix + "*"})
	e, ok := errors.AsType[*safefile.Error](err)
	if !ok {
		return err
	}
	switch e.Step {
	case safefile.Create:
		return &folderError{dir, "takes no files", "let the service own the folder: chown sendas-token " + dir, withoutPath(err)}
	case safefile.Own:
		return &folderError{dir, fmt.Sprintf("belongs to user %d and group %d, to whom the service may not give files", own.uid, own.gid),
			fmt.Sprintf("type: chown sendas-token:postfix %s; chmod 2750 %s", dir, dir), withoutPath(err)}
	case safefile.Fill:
		return &folderError{path, "cannot be written", "is the disk full?", withoutPath(err)}
	}
	return err
}

// tidy removes what was ours: files of mailboxes that are gone, and unfinished ones of a service
// that was killed. What cannot be removed is logged, and tried again in the next round.
func (f *Files) tidy(list []File) {
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		return // writing into it will say so
	}
	stays := make(map[string]bool, len(list))
	for _, x := range list {
		stays[FileName(x.Mailbox)] = true
	}
	for _, e := range entries {
		path := filepath.Join(f.Dir, e.Name())
		if stays[e.Name()] || !strings.HasPrefix(e.Name(), tempPrefix) && !isOurs(path) {
			continue
		}
		err := os.Remove(path)
		if err == nil && !strings.HasPrefix(e.Name(), tempPrefix) {
			f.Log.Info("token file removed: its mailbox is not in the configuration", "file", path)
		}
		f.tell(e.Name(), err)
	}
}

// isOurs reports whether Files wrote the file, in this run or an earlier one.
func isOurs(path string) bool {
	p, _, err := readTokenFile(path)
	return err == nil && p.TokenEndpoint == noEndpoint
}
