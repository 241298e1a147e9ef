package entra

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/sendas/sendas/internal/safefile"
)

const (
	// maxGrant is the size in bytes above which a file is no grant: refresh tokens
	// have one or two kB.
	maxGrant = 64 << 10

	// lockTime bounds how long writing a grant waits for another process that does
	// the same; it takes some milliseconds.
	lockTime = 10 * time.Second

	// watchEvery is how often Watch looks.
	watchEvery = 2 * time.Second
)

// Vault keeps what users have signed in for: a file NAME.json for each credential,
// with its refresh token, readable by its owner alone. Whoever has such a file can
// send as that user, until the user or an administrator revokes the sign-in.
//
// A file changes whole or not at all, whatever dies: a process, the disk's last
// block, the power. The methods are safe for concurrent use by several processes.
// All their errors are *FileErrors.
type Vault struct {
	// Dir is the folder of the files. Save makes it, not the one above it, and
	// gives it to the owner of that one. It is no symbolic link that leads out of
	// the folder above: root writes where a service's user could place one.
	Dir string
}

// StoredGrant is a user's sign-in as it is kept.
type StoredGrant struct {
	Refresh  Secret
	ClientID string // of the app that it was given to, which alone can use it
	Tenant   string // GUID or domain
	User     string // who signed in, by user principal name; may be empty
	Scope    string // what the access tokens are asked for

	SignedIn  time.Time
	Refreshed time.Time // when Refresh came; it is good for MaxIdle from then
	Used      time.Time // when Refresh was last redeemed; zero where that is not known
}

// MaxIdle is how long a refresh token is good, from when it came ("Refresh tokens in the Microsoft
// identity platform": 90 days). To redeem it does not make that longer: only the new one does that
// comes with the answer, and Entra gives one where offline_access was asked for.
const MaxIdle = 90 * 24 * time.Hour

// Renewed is when the refresh token came: with the last refresh that brought one, or the sign-in.
func (g *StoredGrant) Renewed() time.Time { return LaterOf(g.SignedIn, g.Refreshed) }

// Kept reports whether the last refresh brought no new refresh token, so that the sign-in comes
// nearer to its end with each day.
func (g *StoredGrant) Kept() bool { return g.Used.After(g.Renewed()) }

// storedGrant is a StoredGrant as it stands in the file. A Secret would be stored
// as REDACTED. Unknown keys are ignored: a newer version may have been here.
type storedGrant struct {
	Refresh   string    `json:"refresh_token"`
	ClientID  string    `json:"client_id"`
	Tenant    string    `json:"tenant"`
	User      string    `json:"user"`
	Scope     string    `json:"scope"`
	SignedIn  time.Time `json:"signed_in"`
	Refreshed time.Time `json:"refreshed"`
	Used      time.Time `json:"used,omitzero"`
}

// grantName is what a credential is called in the configuration; above all it leads
// out of no folder.
var grantName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Path returns the name of the file of a credential, whether or not it is there.
func (v *Vault) Path(credential string) string {
	return filepath.Join(v.Dir, fileOf(credential))
}

func fileOf(credential string) string { return filepath.Base("/"+credential) + ".json" }

// Load returns the grant of a credential. fs.ErrNotExist is inside the error where
// nobody has signed in.
func (v *Vault) Load(credential string) (*StoredGrant, error) {
	dir, err := v.open(credential, false)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return v.load(dir, credential)
}

// Save stores the grant of a credential in place of an older one, which stays in
// force when this fails. Where root saves, folder and file get the owner of the
// folder above them.
func (v *Vault) Save(credential string, g *StoredGrant) error {
	_, err := v.write(credential, g, func(*os.Root) bool { return true })
	return err
}

// Check reports whether Save could store a grant now. It goes the whole way but for
// the last step, so that nobody has to sign in only to hear that the disk is full.
func (v *Vault) Check(credential string) error {
	_, err := v.write(credential, &StoredGrant{Refresh: Secret(strings.Repeat("x", 4<<10))}, func(*os.Root) bool { return false })
	return err
}

// replace stores a rotated grant if the stored one is still the one that it was made
// from. Otherwise somebody has signed in, or has taken the grant away, in the
// meantime: that counts, and replace returns false.
func (v *Vault) replace(credential string, was Secret, g *StoredGrant) (bool, error) {
	return v.write(credential, g, func(dir *os.Root) bool {
		now, err := v.load(dir, credential)
		if err != nil {
			// A damaged file is not worth keeping; a removed one is a decision.
			return !errors.Is(err, fs.ErrNotExist)
		}
		return now.Refresh == was
	})
}

// Watch calls changed when somebody has signed in anew, until ctx ends: a service
// then need not be told. It looks every two seconds, and is silent about grants
// that were merely rotated. The stored grant of the moment is not new.
func (v *Vault) Watch(ctx context.Context, credential string, changed func()) {
	last := v.signedIn(credential)
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		// The content is compared, not the time of the file: that also changes
		// when changed makes us rotate the token, and so would call for ever.
		if now := v.signedIn(credential); !now.IsZero() && !now.Equal(last) {
			last = now
			changed()
		}
	}
}

// signedIn returns when the stored sign-in took place; zero where there is none.
func (v *Vault) signedIn(credential string) time.Time {
	g, err := v.Load(credential)
	if err != nil {
		return time.Time{}
	}
	return g.SignedIn
}

// open opens the folder, and makes it if it is to be written to.
func (v *Vault) open(credential string, create bool) (*os.Root, error) {
	if !grantName.MatchString(credential) {
		return nil, &FileError{Path: v.Dir, Problem: fmt.Sprintf("can hold no grant of %q", credential), Act: "name a credential with letters, digits, - . and _ alone"}
	}
	parent, err := os.OpenRoot(filepath.Dir(v.Dir))
	if err != nil {
		return nil, v.notOpened(credential, create, err)
	}
	defer parent.Close()
	name := filepath.Base(v.Dir)
	dir, err := parent.OpenRoot(name)
	if create && errors.Is(err, fs.ErrNotExist) {
		if err = makeFolder(parent, name); err == nil {
			dir, err = parent.OpenRoot(name)
		}
	}
	if err != nil {
		return nil, v.notOpened(credential, create, err)
	}
	info, err := dir.Stat(".")
	if err == nil && info.Mode().Perm()&0o022 == 0 {
		return dir, nil
	}
	dir.Close()
	if err != nil {
		return nil, v.notOpened(credential, create, err)
	}
	return nil, &FileError{Path: v.Dir, Problem: fmt.Sprintf("is a folder in which others may put files (mode %04o)", info.Mode().Perm()),
		Act: fmt.Sprintf("type \"chmod 0700 %s\"", v.Dir)}
}

func (v *Vault) notOpened(credential string, create bool, err error) error {
	switch {
	case !create:
		return v.unreadable(credential, err)
	case errors.Is(err, fs.ErrNotExist):
		up := filepath.Dir(v.Dir)
		return &FileError{Path: up, Err: err, Problem: "does not exist", Act: fmt.Sprintf("it is token.state_dir, and belongs to the user of the token service; "+
			"type \"install -d -m 0700 -o sendas-token %s\"", up)}
	}
	return v.unwritable(credential, err)
}

// makeFolder makes the folder with the owner of the one above.
func makeFolder(parent *os.Root, name string) error {
	err := parent.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was faster
	}
	if err == nil {
		err = parent.Chmod(name, 0o700) // past the umask
	}
	if uid, gid, ok := ownerToBe(parent); ok && err == nil {
		err = parent.Lchown(name, uid, gid)
	}
	return err
}

// ownerToBe returns the owner that files below dir should get; ok is false where
// this process cannot choose.
func ownerToBe(dir *os.Root) (uid, gid int, ok bool) {
	info, err := dir.Stat(".")
	if err != nil || os.Geteuid() != 0 {
		return 0, 0, false
	}
	o := safefile.OwnerOf(info)
	return o.UID, o.GID, true
}

// load reads and checks the file of a credential.
func (v *Vault) load(dir *os.Root, credential string) (*StoredGrant, error) {
	info, err := dir.Lstat(fileOf(credential)) // before it is opened: opening a FIFO would wait for a writer
	if err != nil {
		return nil, v.unreadable(credential, err)
	}
	if err := v.fit(dir, credential, info); err != nil {
		return nil, err
	}
	f, err := dir.Open(fileOf(credential))
	if err != nil {
		return nil, v.unreadable(credential, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxGrant))
	if err != nil {
		return nil, v.unreadable(credential, err)
	}
	return v.parse(credential, data)
}

// fit reports whether a file can be a grant that nobody else has seen or written.
func (v *Vault) fit(dir *os.Root, credential string, info fs.FileInfo) error {
	path := v.Path(credential)
	folder, err := dir.Stat(".")
	if err != nil {
		return v.unreadable(credential, err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return v.problem(credential, "is not a regular file", "remove it, then "+signInAgain(credential))
	case mode.Perm()&0o007 != 0:
		return v.problem(credential, fmt.Sprintf("is open to every user of this machine (mode %04o)", mode.Perm()),
			fmt.Sprintf("type \"chmod 0600 %s\", and if somebody may have read it, revoke the user's sessions in the Entra admin centre and %s", path, signInAgain(credential)))
	case info.Size() > maxGrant:
		return v.problem(credential, "is larger than 64 KiB, which no grant is", signInAgain(credential))
	case !trusted(info, folder):
		return v.problem(credential, "belongs to another user than its folder",
			fmt.Sprintf("if you know why, type \"chown --reference=%s %s\", else \"sendas login %s\"", v.Dir, path, credential))
	}
	return nil
}

// trusted reports whether a file belongs to the owner of its folder, to us, or to root.
func trusted(file, folder fs.FileInfo) bool {
	uid := safefile.OwnerOf(file).UID
	return uid == safefile.OwnerOf(folder).UID || uid == 0 || uid == os.Geteuid()
}

func (v *Vault) parse(credential string, data []byte) (*StoredGrant, error) {
	var s storedGrant
	// The parser's own words can quote the file; they are not passed on.
	if json.Unmarshal(data, &s) != nil || s.Refresh == "" || strings.ContainsFunc(s.Refresh, notInSecret) {
		return nil, v.problem(credential, "is damaged or was not written by sendas", signInAgain(credential))
	}
	g := StoredGrant{Secret(s.Refresh), s.ClientID, s.Tenant, s.User, s.Scope, s.SignedIn, s.Refreshed, s.Used}
	return &g, nil
}

// write stores a grant if wanted says so, which is asked when all but the last step
// is done and no other process can write.
func (v *Vault) write(credential string, g *StoredGrant, wanted func(dir *os.Root) bool) (bool, error) {
	if g.Refresh == "" || strings.ContainsFunc(string(g.Refresh), notInSecret) || len(g.Refresh) > maxGrant/2 {
		e := v.problem(credential, "was not written", "")
		e.Cause = "Microsoft gave something that is no refresh token"
		return false, e
	}
	data, err := json.MarshalIndent(storedGrant{string(g.Refresh), g.ClientID, g.Tenant, g.User, g.Scope, g.SignedIn.UTC(), g.Refreshed.UTC(), g.Used.UTC()}, "", "\t")
	if err != nil {
		return false, v.unwritable(credential, err)
	}
	dir, err := v.open(credential, true)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	folder, err := lock(dir)
	if err != nil {
		return false, v.unwritable(credential, err)
	}
	defer folder.Close() // which unlocks it
	if err := v.place(dir, credential, append(data, '\n'), wanted); err != nil {
		if errors.Is(err, errUnwanted) {
			return false, nil
		}
		return false, v.unwritable(credential, err)
	}
	return true, nil
}

// errUnwanted stops place before its last step.
var errUnwanted = errors.New("somebody else's grant stays")

// place writes a file beside the old one and puts it into that one's place. The lock on the folder
// is ours, so what has the temporary name was left by a process that was killed.
func (v *Vault) place(dir *os.Root, credential string, data []byte, wanted func(*os.Root) bool) error {
	name := fileOf(credential)
	o := safefile.Options{Temp: "." + name + ".tmp", Ready: func() error {
		if !wanted(dir) {
			return errUnwanted
		}
		return nil
	}}
	if uid, gid, ok := ownerToBe(dir); ok {
		o.Owner = &safefile.Owner{UID: uid, GID: gid}
	}
	return safefile.WriteIn(dir, name, data, o)
}

// lock keeps other processes from writing to the folder until the file that it
// returns is closed or this process dies (flock(2)).
func lock(dir *os.Root) (*os.File, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockTime); ; time.Sleep(20 * time.Millisecond) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) || time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("locking the folder: %w", err)
		}
	}
}

func (v *Vault) problem(credential, problem, act string) *FileError {
	return &FileError{Path: v.Path(credential), Problem: problem, Act: act}
}

func signInAgain(credential string) string {
	return fmt.Sprintf("type \"sendas login %s\"", credential)
}

// unreadable words why a grant cannot be read.
func (v *Vault) unreadable(credential string, err error) *FileError {
	e := &FileError{Path: v.Path(credential), Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Problem, e.Act = "does not exist", "nobody has signed in for it yet, "+signInAgain(credential)
	case errors.Is(err, fs.ErrPermission):
		e.Problem = "may not be read by this user"
		e.Act = fmt.Sprintf("run the command as root; if the token service says so, type \"chown -R --reference=%s %s\"", filepath.Dir(v.Dir), v.Dir)
	default:
		e.Problem, e.Cause = "cannot be read", causeOf(err).Error()
	}
	return e
}

// unwritable words why a grant cannot be stored.
func (v *Vault) unwritable(credential string, err error) *FileError {
	e := &FileError{Path: v.Path(credential), Problem: "cannot be written", Cause: causeOf(err).Error(), Err: err}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		e.Act = "make room there"
	case errors.Is(err, syscall.EROFS):
		e.Act = "a unit needs token.state_dir as StateDirectory= or in ReadWritePaths="
	case errors.Is(err, fs.ErrPermission):
		e.Act = fmt.Sprintf("run the command as root, or give the folder to the user of the token service: \"chown -R sendas-token %s\"", v.Dir)
	case errors.Is(err, syscall.EWOULDBLOCK):
		e.Cause = "another process has kept the folder locked for 10 s"
		e.Act = fmt.Sprintf("\"lsof %s\" names it", v.Dir)
	}
	return e
}
