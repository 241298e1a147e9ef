package config

import (
	"net/url"
	"path/filepath"
	"strings"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/ledger"
)

// A storeOwner is the service that keeps something in a store. Whoever has to do something about
// the store is told its names.
type storeOwner struct {
	section string // its keys in the configuration
	unit    string // what systemd calls it
	file    string // the store, where none is named
}

var (
	tokenOwner  = storeOwner{"token", "sendas-token", "/var/lib/sendas-token/token.db"}
	milterOwner = storeOwner{"milter", "sendas-milter", "/var/lib/sendas/milter.db"}
)

// A Store says where a service keeps what it counts. Its keys stand among those of the service.
type Store struct {
	owner        storeOwner
	Store        string // memory:, bolt:FILE, or the URL of a Redis or Valkey
	PasswordFile string // of the Redis; or credential:NAME
	Hosts        int    // how many hosts share the Redis, this one included
	Host         string // the name of this one among them; empty: the host name
}

// StoreOf returns the parts of a section that say where it keeps what it counts.
func (t *Token) StoreOf() Store {
	return Store{tokenOwner, t.Store, t.StorePasswordFile, t.Hosts, t.Host}
}

func (m *Milter) StoreOf() Store {
	return Store{milterOwner, m.Store, m.StorePasswordFile, m.Hosts, ""}
}

// File returns the file of a store, or "" where it is none.
func (s *Store) File() string {
	f, _ := strings.CutPrefix(s.Store, "bolt:")
	if f == s.Store {
		return ""
	}
	return f
}

// Name returns the store without what nobody should read in a log.
func (s Store) Name() string {
	if u, err := url.Parse(s.Store); err == nil {
		return u.Redacted()
	}
	return "unreadable"
}

// Hostname returns the host of the URL, or "".
func (s Store) Hostname() string {
	u, err := url.Parse(s.Store)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// Shared reports whether several hosts can use the store.
func (s *Store) Shared() bool { return s.Store != "memory:" && s.File() == "" }

// completeStore fills in the default file below dir and makes names absolute, which start at the
// configuration's folder.
func completeStore(store, passwordFile *string, base, dir, name string) {
	if *store == "" {
		*store = "bolt:" + filepath.Join(dir, name)
	}
	if f, ok := strings.CutPrefix(*store, "bolt:"); ok && f != "" {
		*store = "bolt:" + under(base, f)
	}
	*passwordFile = under(base, *passwordFile)
}

// store checks where a service keeps what it counts.
func (k *checker) store(s Store) {
	section := s.owner.section
	path := section + ".store"
	switch {
	case s.Store == "memory:" || s.File() != "":
	case strings.HasPrefix(s.Store, "bolt:"):
		k.fail(path, "the file is missing; write bolt:%s", s.owner.file)
	default:
		k.storeURL(path, s.Store)
	}
	switch {
	case !s.Shared() && s.Hosts > 1:
		k.fail(section+".hosts", "several hosts can only share a Redis or Valkey; write store: redis://HOST:6379/0")
	case s.Shared() && (k.all || k.milter && s.owner == milterOwner || k.files && s.owner == tokenOwner) && s.PasswordFile != "":
		_, err := entra.ReadPassword(s.PasswordFile, s.owner.unit)
		k.file(section+".store_password_file", err)
	}
	if s.Hosts < 1 || s.Hosts > maxHosts {
		k.fail(section+".hosts", "%d hosts cannot share a store; count this one too, and no more than %d", s.Hosts, maxHosts)
	}
	if s.Host != "" && !plainWord.MatchString(s.Host) {
		k.fail(section+".host", "%q is not a name; write letters, digits, dot, dash and underscore", Clip(s.Host))
	}
}

// Redis says how to reach the store, which is a shared one.
func (s *Store) Redis(c *Site) (limit.Redis, error) {
	o := limit.Redis{URL: s.Store, Tenant: strings.ToLower(c.Tenant.ID)}
	if s.PasswordFile == "" {
		return o, nil
	}
	password, err := entra.ReadPassword(s.PasswordFile, s.owner.unit)
	if err != nil {
		return o, exit.Errorf(exit.Config, "the user of the service has to be able to read it, and nobody else", "%s.store_password_file: %w", s.owner.section, err)
	}
	o.Password = string(password)
	return o, nil
}

// maxHosts is more than share one tenant anywhere: each must have one of 30 messages a minute when
// it is alone.
const maxHosts = 9

func (k *checker) storeURL(path, s string) {
	u, err := url.Parse(s)
	const want = "write bolt:FILE, redis://HOST:6379/0, rediss:// for TLS, unix:///SOCKET, or memory:"
	if err != nil { // its text may hold a password
		k.fail(path, "this is not a store; %s", want)
		return
	}
	if _, has := u.User.Password(); has {
		k.fail(path, "a password does not stand in this file; write it into a file and name that under store_password_file")
		return
	}
	if u.Query().Has("skip_verify") {
		k.fail(path, "without verification anybody can pretend to be the store, and so let mail pass that is over the limits; remove skip_verify, and let this machine trust the store's certificate")
		return
	}
	switch u.Scheme {
	case "redis", "rediss":
		if u.Hostname() == "" {
			k.fail(path, "the host is missing; write %s://HOST:6379/0", u.Scheme)
		} else if db := strings.Trim(u.Path, "/"); strings.Trim(db, "0123456789") != "" {
			k.fail(path, "%q is not the number of a database; write %s://%s/0", Clip(db), u.Scheme, u.Host)
		}
	case "unix":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			k.fail(path, "the path of the socket is missing; write unix:///run/redis/redis.sock")
		}
	default:
		k.fail(path, "%q is not a store; %s", Clip(s), want)
	}
}

// Ledger makes the client of the store that hosts share.
func (s *Store) Ledger(c *Site) (*ledger.Redis, error) {
	o, err := s.Redis(c)
	if err != nil {
		return nil, err
	}
	r, err := ledger.NewRedis(o)
	if err != nil {
		return nil, exit.Errorf(exit.Config, "", "token.store: %w", err)
	}
	return r, nil
}
