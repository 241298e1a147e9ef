package entra

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// MaxFile is the size in bytes above which a file is no secret, key or
// certificate chain, but a mistake.
const MaxFile = 1 << 20

// FileError tells what is wrong with a file that proves who we are, and what to do. It lasts until
// an administrator mends the file; it is read again for every request, so no restart is needed.
type FileError struct {
	Path    string
	Problem string // "is empty", follows the path
	Cause   string // what stands behind the problem: "no space left on device"; may be empty
	Act     string // "write the password into it"; may be empty
	Err     error  // what the operating system or a parser said; may be nil
}

func (e *FileError) Error() string { return fmt.Sprintf("file %q %s", e.Path, e.Sentence()) }

// Found says what is wrong, without the path and without what to do.
func (e *FileError) Found() string {
	if e.Cause == "" {
		return e.Problem
	}
	return e.Problem + ": " + e.Cause
}

// Sentence says all but the path.
func (e *FileError) Sentence() string {
	switch {
	case e.Act == "":
		return e.Found()
	case e.Cause == "":
		return e.Problem + ": " + e.Act
	}
	return e.Found() + "; " + e.Act
}

func (e *FileError) Unwrap() error { return e.Err }

// Temporary is always false: waiting does not mend a file.
func (e *FileError) Temporary() bool { return false }

// CredentialPrefix begins a configured file name that stands for a credential
// which systemd hands to the unit: "credential:relay-app.secret" is what
// LoadCredential=relay-app.secret:/FILE or LoadCredentialEncrypted= names.
const CredentialPrefix = "credential:"

// ErrNoCredentials is inside the *FileError about a name with CredentialPrefix in a
// process that systemd handed no credentials: such as a command typed in a shell,
// which can neither confirm nor refuse what only the service will see.
var ErrNoCredentials = errors.New("systemd handed over no credentials (CREDENTIALS_DIRECTORY is not set)")

// ResolveFile returns the path that a configured file name stands for now: the name
// itself, or, after CredentialPrefix, the file below $CREDENTIALS_DIRECTORY
// (systemd.exec(5), "Credentials"). It does not look whether the file is there. The
// error is a *FileError. Every Source resolves its names for every request.
func ResolveFile(name string) (string, error) { return ours.resolve(name) }

// A unit is the service that reads a file, as systemd knows it: what to do about a file names it.
type unit string

// ours is the unit of this package's files.
const ours unit = "sendas-token"

func (u unit) resolve(name string) (string, error) {
	credential, ok := strings.CutPrefix(name, CredentialPrefix)
	if !ok {
		return name, nil
	}
	// systemd's own rule for such a name; above all it leads out of no folder.
	if credential == "" || credential == "." || credential == ".." || len(credential) > 255 || strings.ContainsFunc(credential, notInCredentialName) {
		return "", &FileError{Path: name, Problem: "is not the name of a credential", Act: "write credential:NAME as in LoadCredential=NAME:/FILE of the unit"}
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if !filepath.IsAbs(dir) {
		return "", &FileError{Path: name, Err: ErrNoCredentials, Problem: "stands for a credential of systemd's, and this process was handed none", Act: u.loadCredential(credential)}
	}
	return filepath.Join(dir, credential), nil
}

func notInCredentialName(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' || r == ':' }

// loadCredential says how a credential gets into the unit.
func (u unit) loadCredential(name string) string {
	return fmt.Sprintf("type \"systemctl edit %s\", write LoadCredential=%s:/FILE below [Service], and restart the service", u, name)
}

// CheckSecretFile reports whether path can serve as a client secret: a regular
// file, closed to other users, with one line of text. It may be a name for
// ResolveFile. The error is a *FileError.
func CheckSecretFile(path string) error {
	_, err := readSecret(path)
	return err
}

// ReadPassword returns the password in a file for the service of that unit ("sendas-milter"): one
// line, closed to other users as in [CheckSecretFile]. path may be a name for ResolveFile. The
// error is a *FileError.
func ReadPassword(path, serviceUnit string) (Secret, error) {
	return unit(serviceUnit).readLine(path, "the password")
}

// readSecret returns the one line of a secret file without what stands around it. What is no client
// secret whatever Entra says is told here, where the cure is known.
func readSecret(path string) (Secret, error) {
	b, err := ours.readPrivate(path)
	if err != nil {
		return "", err
	}
	s := strings.TrimSpace(string(bytes.TrimPrefix(b, byteOrderMark)))
	if e := notValue(path, s); e != nil {
		return "", e
	}
	return ours.readLine(path, clientSecret)
}

const clientSecret = "the Value of the client secret"

var (
	// assignment is a line of a shell or of an environment file.
	assignment = regexp.MustCompile(`(?i)^(export\s+)?["']?[A-Z_]*(SECRET|PASSW|CLIENT|AZURE|VALUE|KEY)[A-Z_]*["']?\s*[=:]\s*\S`)
	guidForm   = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
)

// notValue explains the forms in which something else than a client secret gets into its file, nil
// for none of them. It never shows what is there.
func notValue(path, s string) *FileError {
	e := &FileError{Path: path, Act: "write " + clientSecret + " into it and nothing else"}
	switch {
	case strings.Contains(s, "-----BEGIN"):
		e.Problem, e.Act = "holds a certificate or a key", "name it under certificate_file: in place of client_secret_file:, or "+e.Act
	case assignment.MatchString(s):
		e.Problem = "holds a name with its value, as for a shell (NAME=VALUE)"
	case len(s) > 1 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0]:
		e.Problem, e.Act = "has quotation marks around the secret, which are not in it", "take them away"
	case guidForm.MatchString(s):
		e.Problem, e.Act = "holds an ID and not the secret", "write its Value into it (Certificates & secrets shows both side by side, the Value only on the day on which it is made)"
	default:
		return nil
	}
	return e
}

// byteOrderMark is what editors on Windows put before text.
var byteOrderMark = []byte("\ufeff")

// inUTF16 explains a text file that Notepad or PowerShell has written with two bytes a character.
func inUTF16(path string, b []byte) *FileError {
	if !bytes.HasPrefix(b, []byte{0xff, 0xfe}) && !bytes.HasPrefix(b, []byte{0xfe, 0xff}) {
		return nil
	}
	return &FileError{Path: path, Problem: "is in UTF-16, as PowerShell and Notepad write it",
		Act: fmt.Sprintf("type \"iconv -f UTF-16 -t UTF-8 %s -o NEW\" and use the new file", path)}
}

func (u unit) readLine(path, what string) (Secret, error) {
	b, err := u.readPrivate(path)
	if err != nil {
		return "", err
	}
	if p := inUTF16(path, b); p != nil {
		return "", p
	}
	// Editors on Windows put a byte order mark first; it is not in the secret.
	s := strings.TrimSpace(string(bytes.TrimPrefix(b, byteOrderMark)))
	switch {
	case s == "":
		return "", &FileError{Path: path, Problem: "is empty", Act: "write " + what + " into it"}
	case strings.ContainsFunc(s, notInSecret):
		return "", &FileError{Path: path, Problem: "has blanks, several lines or bytes that are not text",
			Act: "write " + what + " into it and nothing else"}
	}
	return Secret(s), nil
}

// notInSecret finds what no client secret has. Entra makes them of letters,
// digits and punctuation of ASCII.
func notInSecret(r rune) bool { return r <= ' ' || r >= 0x7f }

// readPrivate reads a file that other users must not be able to read. It may be open
// to its group: that is how packages give a file to a service, and systemd a
// credential (0440 with an entry for the user, or 0400 of its own).
func (u unit) readPrivate(path string) ([]byte, error) {
	b, mode, err := u.readFile(path)
	if err != nil {
		return nil, err
	}
	if mode.Perm()&0o007 != 0 {
		return nil, &FileError{Path: path, Problem: fmt.Sprintf("is open to every user of this machine (mode %04o)", mode.Perm()),
			Act: fmt.Sprintf("type \"chmod o= %s\"", path)}
	}
	return b, nil
}

// readFile reads a whole regular file of a sane size. Errors name it as it was
// configured.
func (u unit) readFile(name string) ([]byte, fs.FileMode, error) {
	path, err := u.resolve(name)
	if err != nil {
		return nil, 0, err
	}
	// Looked at before it is opened: opening a FIFO would wait for a writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, u.unreadable(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, 0, &FileError{Path: name, Problem: "is not a regular file", Act: "name the file itself"}
	}
	if info.Size() > MaxFile {
		return nil, 0, &FileError{Path: name, Problem: "is larger than 1 MiB", Cause: "it is no secret, key or certificate"}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, u.unreadable(name, err)
	}
	return b, info.Mode(), nil
}

func (u unit) unreadable(path string, err error) *FileError {
	e := &FileError{Path: path, Err: err}
	credential, bySystemd := strings.CutPrefix(path, CredentialPrefix)
	switch {
	case bySystemd && errors.Is(err, fs.ErrNotExist):
		e.Problem = "is not among the credentials that systemd handed over"
		e.Act = u.loadCredential(credential)
	case bySystemd && errors.Is(err, fs.ErrPermission):
		e.Problem = "was handed over to another user than this service's"
		e.Act = "compare User= of the unit and restart the service"
	case errors.Is(err, fs.ErrNotExist):
		e.Problem = "does not exist"
		e.Act = "create it, or correct its name in the configuration"
	case errors.Is(err, fs.ErrPermission):
		e.Problem = "may not be read by this service"
		e.Act = fmt.Sprintf("give it to the group of its user, then type \"chmod 0640 %s\"", path)
	default:
		e.Problem = "cannot be read"
		e.Cause = causeOf(err).Error()
	}
	return e
}

// causeOf drops the path from an error of the operating system: the sentence
// around it names the file already.
func causeOf(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
