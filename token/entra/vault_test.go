package entra

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The test binary plays a process that dies while it writes: killed at any moment,
// or unable to write more than some bytes.
func init() {
	switch dir := os.Getenv("TEST_VAULT_DIR"); os.Getenv("TEST_VAULT_ROLE") {
	case "writer":
		writeForever(&Vault{Dir: dir})
	case "full disk":
		writeToFullDisk(&Vault{Dir: dir})
	}
}

func writeForever(v *Vault) {
	for i := 0; ; i++ {
		if err := v.Save("scan", testGrant(i)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("written", i)
	}
}

func writeToFullDisk(v *Vault) {
	signal.Ignore(syscall.SIGXFSZ) // else the kernel ends the process instead of the write
	limit := syscall.Rlimit{Cur: 1000, Max: 1000}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(v.Save("scan", testGrant(2)))
	fmt.Println(v.Check("scan"))
	os.Exit(0)
}

// vaultProcess returns the test binary in one of the roles.
func vaultProcess(t *testing.T, role string, v *Vault) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^$")
	c.Env = append(os.Environ(), "TEST_VAULT_ROLE="+role, "TEST_VAULT_DIR="+v.Dir)
	return c
}

// testGrant makes a grant whose parts all tell its number, larger than any buffer
// or page on the way to the disk.
func testGrant(i int) *StoredGrant {
	return &StoredGrant{
		Refresh:  Secret(strings.Repeat(fmt.Sprintf("0.AXoA%08d~", i), 1000)),
		ClientID: fmt.Sprintf("client-%08d", i), Tenant: "contoso.onmicrosoft.com", User: "scan@contoso.com", Scope: testUserScope,
		SignedIn: testNow.Add(time.Duration(i) * time.Second), Refreshed: testNow.Add(time.Duration(i) * time.Second),
	}
}

// wantWhole fails unless a whole test grant is stored, and returns its number.
func wantWhole(t *testing.T, v *Vault) int {
	t.Helper()
	g, err := v.Load("scan")
	if err != nil {
		t.Fatalf("Load: %v, want a grant", err)
	}
	var i int
	if _, err := fmt.Sscanf(g.ClientID, "client-%d", &i); err != nil || *g != *testGrant(i) {
		t.Fatalf("Load = a mixture of grants: client %s, %d bytes, signed in %v", g.ClientID, len(g.Refresh), g.SignedIn)
	}
	return i
}

func testVault(t *testing.T) *Vault {
	t.Helper()
	return &Vault{Dir: filepath.Join(t.TempDir(), "grants")}
}

// listing lists a folder.
func listing(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range list {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestVault(t *testing.T) {
	v := testVault(t)
	defer syscall.Umask(syscall.Umask(0o277)) // the strangest that a shell may have
	for i := range 3 {
		if err := v.Save("scan", testGrant(i)); err != nil {
			t.Fatal(err)
		}
		if got := wantWhole(t, v); got != i {
			t.Errorf("Load after Save of grant %d = grant %d", i, got)
		}
	}
	if err := v.Save("..", testGrant(9)); err != nil {
		t.Errorf("Save(..): %v, want a file of its own", err)
	}
	if got, want := listing(t, v.Dir), "...json scan.json"; got != want {
		t.Errorf("files = %q, want %q", got, want)
	}
	for path, want := range map[string]fs.FileMode{v.Path("scan"): 0o600, v.Dir: fs.ModeDir | 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("mode of %s = %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

// TestVaultFile pins the form on the disk: an older version's file must be good
// for ever.
func TestVaultFile(t *testing.T) {
	v := testVault(t)
	const old = `{"refresh_token":"0.AXoA~x","client_id":"c","tenant":"t","user":"u","scope":"s","signed_in":"2026-11-21T04:00:00Z","refreshed":"2026-11-21T05:00:00Z","added_in_2030":[1]}`
	want := StoredGrant{"0.AXoA~x", "c", "t", "u", "s", testNow, testNow.Add(time.Hour), time.Time{}}
	putFile(t, v, "scan", old, 0o600)
	got, err := v.Load("scan")
	if err != nil || *got != want || got.Kept() {
		t.Fatalf("Load = %+v, %v, want %+v", got, err, want)
	}
	if err := v.Save("scan", got); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(v.Path("scan"))
	var keys map[string]string
	if err != nil || json.Unmarshal(b, &keys) != nil || keys["refresh_token"] != "0.AXoA~x" || keys["refreshed"] != "2026-11-21T05:00:00Z" || len(keys) != 7 {
		t.Errorf("file = %s, %v, want the same keys", b, err)
	}
}

// TestGrantDates: the refresh token's date is when it came, whenever it was used.
func TestGrantDates(t *testing.T) {
	at := func(hours int) time.Time { return testNow.Add(time.Duration(hours) * time.Hour) }
	for _, tc := range []struct {
		name                      string
		signedIn, refreshed, used time.Time
		renewed                   time.Time
		kept                      bool
	}{
		{"just signed in", at(0), at(0), at(0), at(0), false},
		{"renewed", at(0), at(5), at(5), at(5), false},
		{"used, and not renewed", at(0), at(5), at(7), at(5), true},
		{"signed in again", at(9), at(5), at(7), at(9), false},
		{"of an older version", at(0), at(5), time.Time{}, at(5), false},
	} {
		v := testVault(t)
		if err := v.Save("scan", &StoredGrant{Refresh: testRefresh, SignedIn: tc.signedIn, Refreshed: tc.refreshed, Used: tc.used}); err != nil {
			t.Fatal(err)
		}
		g, err := v.Load("scan")
		if err != nil || !g.Renewed().Equal(tc.renewed) || g.Kept() != tc.kept || !g.Used.Equal(tc.used) {
			t.Errorf("%s: renewed %v, kept %v, used %v (%v), want %v and %v", tc.name, g.Renewed(), g.Kept(), g.Used, err, tc.renewed, tc.kept)
		}
	}
}

// putFile makes the file of a credential without Save.
func putFile(t *testing.T, v *Vault, credential, content string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(v.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(v.Path(credential), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(v.Path(credential), mode); err != nil {
		t.Fatal(err)
	}
}

func TestVaultLoadSentences(t *testing.T) {
	v := testVault(t)
	if err := v.Save("good", testGrant(1)); err != nil {
		t.Fatal(err)
	}
	const good = `{"refresh_token":"abc"}`
	putFile(t, v, "open", good, 0o604)
	putFile(t, v, "empty", "", 0o600)
	putFile(t, v, "cut", good[:18], 0o600)
	putFile(t, v, "twice", good+good, 0o600)
	putFile(t, v, "none-in-it", `{"user":"scan@contoso.com"}`, 0o600)
	putFile(t, v, "line", `{"refresh_token":"abc\ndef"}`, 0o600)
	putFile(t, v, "number", `{"refresh_token":7}`, 0o600)
	putFile(t, v, "big", good+strings.Repeat(" ", maxGrant), 0o600)
	if err := errors.Join(os.Mkdir(v.Path("folder"), 0o700), syscall.Mkfifo(v.Path("fifo"), 0o600), os.Symlink("good.json", v.Path("link"))); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ credential, want string }{
		{"scan", `does not exist: nobody has signed in for it yet, type "sendas login scan"`},
		{"open", `is open to every user of this machine (mode 0604): type "chmod 0600 ` + v.Path("open") + `"`},
		{"empty", `is damaged or was not written by sendas: type "sendas login empty"`},
		{"cut", `is damaged`},
		{"twice", `is damaged`},
		{"none-in-it", `is damaged`},
		{"line", `is damaged`},
		{"number", `is damaged`},
		{"big", `is larger than 64 KiB, which no grant is: type "sendas login big"`},
		{"folder", `is not a regular file: remove it, then type "sendas login folder"`},
		{"fifo", `is not a regular file`},
		{"link", `is not a regular file`},
		{"../grants/good", `can hold no grant of "../grants/good": name a credential with letters, digits, - . and _ alone`},
		{"", `can hold no grant of ""`},
		{"a b", `can hold no grant of "a b"`},
		{strings.Repeat("a", 65), `can hold no grant of`},
	} {
		_, err := v.Load(tc.credential)
		fe, ok := errors.AsType[*FileError](err)
		if !ok || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Load(%q) = %v, want a *FileError with %q", tc.credential, err, tc.want)
			continue
		}
		if got := errors.Is(err, fs.ErrNotExist); got != (tc.credential == "scan") || strings.Contains(fe.Error(), "abc") {
			t.Errorf("Load(%q) = %v: not there %v", tc.credential, err, got)
		}
	}
}

func TestVaultFolderSentences(t *testing.T) {
	base := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"shared": 0o777, "group": 0o770} {
		if err := errors.Join(os.Mkdir(filepath.Join(base, name), 0o700), os.Chmod(filepath.Join(base, name), mode)); err != nil {
			t.Fatal(err)
		}
	}
	outside := t.TempDir()
	if err := errors.Join(os.Symlink(outside, filepath.Join(base, "link")), os.WriteFile(filepath.Join(base, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ dir, load, save string }{
		{"shared", `others may put files (mode 0777): type "chmod 0700 `, `others may put files (mode 0777): type "chmod 0700 `},
		{"group", `(mode 0770)`, `(mode 0770)`},
		{"link", `cannot be read: path escapes from parent`, `cannot be written: path escapes from parent`},
		{"file", `cannot be read: not a directory`, `cannot be written: not a directory`},
		{"no/grants", `nobody has signed in for it yet, type "sendas login scan"`, `does not exist: it is token.state_dir, and belongs to the user of the token service; type "install -d -m 0700 -o sendas-token ` + base + `/no"`},
	} {
		v := Vault{Dir: filepath.Join(base, tc.dir)}
		_, loadErr := v.Load("scan")
		for _, c := range []struct {
			what string
			err  error
			want string
		}{{"Load", loadErr, tc.load}, {"Save", v.Save("scan", testGrant(1)), tc.save}, {"Check", v.Check("scan"), tc.save}} {
			if _, ok := errors.AsType[*FileError](c.err); !ok || !strings.Contains(c.err.Error(), c.want) {
				t.Errorf("%s in %s = %v, want a *FileError with %q", c.what, tc.dir, c.err, c.want)
			}
		}
	}
	if got := listing(t, outside); got != "" {
		t.Errorf("behind the link there is now %q, want nothing", got)
	}
}

func TestVaultRefusesWhatIsNoToken(t *testing.T) {
	v := testVault(t)
	for _, bad := range []Secret{"", "a b", "a\nb", "ü", Secret(strings.Repeat("a", maxGrant))} {
		g := testGrant(1)
		g.Refresh = bad
		if err := v.Save("scan", g); err == nil || !strings.Contains(err.Error(), "no refresh token") {
			t.Errorf("Save of %d bytes = %v, want a refusal", len(bad), err)
		}
	}
	if _, err := os.Stat(v.Path("scan")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
}

func TestVaultUnwritableSentences(t *testing.T) {
	v := &Vault{Dir: "/s/grants"}
	for _, tc := range []struct {
		err        error
		load, save string
	}{
		// Root may do everything, and disks are seldom full: the kernel's words are made up here.
		{&fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, `may not be read by this user: run the command as root; if the token service says so, type "chown -R --reference=/s /s/grants"`,
			`cannot be written: permission denied; run the command as root, or give the folder to the user of the token service: "chown -R sendas-token /s/grants"`},
		{&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, `cannot be read: no space left on device`, `cannot be written: no space left on device; make room there`},
		{&fs.PathError{Op: "open", Path: "x", Err: syscall.EROFS}, `cannot be read: read-only file system`, `a unit needs token.state_dir as StateDirectory=`},
		{fmt.Errorf("locking the folder: %w", syscall.EWOULDBLOCK), `cannot be read`, `another process has kept the folder locked for 10 s; "lsof /s/grants" names it`},
	} {
		if got := v.unreadable("scan", tc.err).Error(); !strings.Contains(got, tc.load) {
			t.Errorf("unreadable(%v) = %q, want %q", tc.err, got, tc.load)
		}
		if got := v.unwritable("scan", tc.err).Error(); !strings.Contains(got, tc.save) || !strings.HasPrefix(got, `file "/s/grants/scan.json" `) {
			t.Errorf("unwritable(%v) = %q, want %q", tc.err, got, tc.save)
		}
	}
}

// asNobody runs f as a user without rights, in a thread that ends with it; where the
// tests do not run as root, it runs f as it is.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	const nobody = 65534
	if err := syscall.Setreuid(-1, nobody); err != nil { // of all threads
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setreuid(-1, 0); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

func TestVaultUnwritableFolder(t *testing.T) {
	v := testVault(t)
	if err := v.Save("scan", testGrant(1)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(v.Dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(v.Dir, 0o700) }) // else nobody can remove it
	for _, dir := range []string{filepath.Dir(v.Dir), filepath.Dir(filepath.Dir(v.Dir))} {
		if err := os.Chmod(dir, 0o755); err != nil { // so that nobody gets as far as the folder
			t.Fatal(err)
		}
	}
	var saved, checked error
	asNobody(t, func() { saved, checked = v.Save("scan", testGrant(2)), v.Check("scan") })
	for _, err := range []error{saved, checked} {
		if err == nil || !strings.Contains(err.Error(), "permission denied; run the command as root") {
			t.Errorf("in a folder that may not be written to: %v, want a *FileError", err)
		}
	}
	if got := wantWhole(t, v); got != 1 {
		t.Errorf("grant %d is stored, want the old one", got)
	}
}

// TestVaultOwner needs root, as the case does: only root saves for somebody else.
func TestVaultOwner(t *testing.T) {
	const uid, gid = 54321, 54322
	root := os.Geteuid() == 0
	v := testVault(t)
	want := fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	if root {
		want = fmt.Sprintf("%d:%d", uid, gid)
		if err := os.Chown(filepath.Dir(v.Dir), uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Save("scan", testGrant(1)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{v.Dir, v.Path("scan")} {
		if got := owner(t, path); got != want {
			t.Errorf("owner of %s = %s, want that of the folder above, %s", path, got, want)
		}
	}
	wantWhole(t, v)
	if root {
		if err := os.Chown(v.Path("scan"), 11111, gid); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Load("scan"); err == nil || !strings.Contains(err.Error(), "belongs to another user than its folder") {
			t.Errorf("Load of a stranger's file = %v, want a refusal", err)
		}
	}
}

func owner(t *testing.T, path string) string {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// A process may die at any moment of Save: what can be loaded afterwards is one grant
// or another, whole.
func TestVaultSurvivesKill(t *testing.T) {
	v := testVault(t)
	seen := make(map[int]bool)
	for i := range 25 {
		c := vaultProcess(t, "writer", v)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var words bytes.Buffer
		c.Stderr = &words
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill() })
		lines := bufio.NewReader(out)
		for n := range 1 + i/3 { // so far at least, however slow the machine
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatalf("the writer wrote %d times: %v %s", n, err, &words)
			}
		}
		for end := time.Now().Add(time.Duration(i*700) * time.Microsecond); time.Now().Before(end); {
			wantWhole(t, v)
		}
		c.Process.Kill() // somewhere in its work
		c.Wait()
		seen[wantWhole(t, v)] = true
	}
	if err := v.Save("scan", testGrant(1)); err != nil {
		t.Errorf("Save after all that: %v", err)
	}
	if got := listing(t, v.Dir); got != "scan.json" {
		t.Errorf("files = %q, want scan.json and nothing left over", got)
	}
	if len(seen) < 3 {
		t.Errorf("the writers got as far as grants %v: they were killed before they wrote", seen)
	}
}

func TestVaultSurvivesFullDisk(t *testing.T) {
	v := testVault(t)
	if err := v.Save("scan", testGrant(1)); err != nil {
		t.Fatal(err)
	}
	out, err := vaultProcess(t, "full disk", v).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := string(out); strings.Count(got, "cannot be written: file too large; make room there") != 2 {
		t.Errorf("Save and Check say\n%s\nwant that there is no room", got)
	}
	if got := wantWhole(t, v); got != 1 {
		t.Errorf("grant %d is stored, want the old one", got)
	}
	if got := listing(t, v.Dir); got != "scan.json" {
		t.Errorf("files = %q, want scan.json and nothing left over", got)
	}
}

func TestVaultCheckChangesNothing(t *testing.T) {
	v := testVault(t)
	if err := v.Check("scan"); err != nil {
		t.Fatal(err)
	}
	if got := listing(t, v.Dir); got != "" {
		t.Errorf("files after Check = %q, want none", got)
	}
	if err := errors.Join(v.Save("scan", testGrant(1)), v.Check("scan")); err != nil {
		t.Fatal(err)
	}
	if got := wantWhole(t, v); got != 1 {
		t.Errorf("grant %d is stored after Check, want 1", got)
	}
}

// Several processes and goroutines write at once, and somebody reads all the time.
func TestVaultTogether(t *testing.T) {
	v := testVault(t)
	if err := v.Save("scan", testGrant(0)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 20 {
				if err := v.Save("scan", testGrant(100*w+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var done atomic.Bool
	go func() { wg.Wait(); done.Store(true) }()
	for !done.Load() {
		wantWhole(t, v)
	}
	wantWhole(t, v)
}

func TestVaultReplace(t *testing.T) {
	v := testVault(t)
	if ok, err := v.replace("scan", "x", testGrant(1)); ok || err != nil {
		t.Errorf("replace of nothing = %v, %v, want false", ok, err)
	}
	if err := v.Save("scan", testGrant(1)); err != nil {
		t.Fatal(err)
	}
	if ok, err := v.replace("scan", testGrant(1).Refresh, testGrant(2)); !ok || err != nil || wantWhole(t, v) != 2 {
		t.Errorf("replace of the stored one = %v, %v, want true", ok, err)
	}
	if ok, err := v.replace("scan", testGrant(1).Refresh, testGrant(3)); ok || err != nil || wantWhole(t, v) != 2 {
		t.Errorf("replace of an older one = %v, %v, want false and the newer to stay", ok, err)
	}
	putFile(t, v, "scan", "{", 0o600)
	if ok, err := v.replace("scan", "x", testGrant(4)); !ok || err != nil || wantWhole(t, v) != 4 {
		t.Errorf("replace of a damaged one = %v, %v, want true", ok, err)
	}
}

func TestVaultLock(t *testing.T) {
	v := testVault(t)
	if err := v.Save("scan", testGrant(1)); err != nil {
		t.Fatal(err)
	}
	dir, err := os.OpenRoot(v.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	held, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		started := time.Now()
		err := v.Save("scan", testGrant(2))
		if took := time.Since(started); err == nil || !strings.Contains(err.Error(), "kept the folder locked") || took < lockTime || took > lockTime+time.Second {
			t.Errorf("Save while another holds the lock = %v after %v, want an error after %v", err, took, lockTime)
		}
		time.AfterFunc(time.Second, func() { held.Close() })
		if err := v.Save("scan", testGrant(3)); err != nil {
			t.Errorf("Save when the lock is let go: %v", err)
		}
	})
	if got := wantWhole(t, v); got != 3 {
		t.Errorf("grant %d is stored, want 3", got)
	}
}

func TestVaultWatch(t *testing.T) {
	v := testVault(t)
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		go v.Watch(t.Context(), "scan", func() { calls.Add(1) })
		want := func(n int32, when string) {
			t.Helper()
			time.Sleep(2 * watchEvery)
			synctest.Wait()
			if got := calls.Load(); got != n {
				t.Errorf("%s: %d calls, want %d", when, got, n)
			}
		}
		save := func(g *StoredGrant) {
			if err := v.Save("scan", g); err != nil {
				t.Fatal(err)
			}
		}
		want(0, "nobody has signed in")
		save(testGrant(1))
		want(1, "first sign-in")
		rotated := *testGrant(1)
		rotated.Refresh = "rotated"
		save(&rotated)
		want(1, "rotated")
		save(testGrant(2))
		want(2, "second sign-in")
		putFile(t, v, "scan", "{", 0o600)
		want(2, "damaged")
		if err := os.Remove(v.Path("scan")); err != nil {
			t.Fatal(err)
		}
		want(2, "gone")
		save(testGrant(3))
		want(3, "third sign-in")
	})
}

func TestStoredGrantPrintsNoSecret(t *testing.T) {
	g := testGrant(1)
	j, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "grant", g, "value", *g)
	for _, s := range []string{fmt.Sprint(g), fmt.Sprintf("%+v %#v %q %x", *g, *g, *g, *g), string(j), log.String()} {
		if strings.Contains(s, "AXoA") || !strings.Contains(s, "contoso") && !strings.Contains(s, "636f6e746f736f") {
			t.Errorf("%.300s shows the refresh token, or nothing", s)
		}
	}
}
