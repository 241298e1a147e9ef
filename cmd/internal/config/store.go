package config

import (
	"errors"
	"net"
	"path/filepath"
	"slices"
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
	owner                storeOwner
	Store                string // memory:, bolt:FILE, or the URL of a Redis or Valkey
	PasswordFile         string // of the Redis; or credential:NAME, as are the other files
	SentinelPasswordFile string // of its sentinels
	CAFile               string // the anchors for its certificate
	CertificateFile      string // what is shown to it,
	KeyFile              string // and its key, unless that is in the same file
	Hosts                int    // how many hosts share the Redis, this one included
	Host                 string // the name of this one among them; empty: the host name
}

// StoreOf returns the parts of a section that say where it keeps what it counts.
func (t *Token) StoreOf() Store {
	return Store{tokenOwner, t.Store, t.StorePasswordFile, t.StoreSentinelPasswordFile, t.StoreCAFile, t.StoreCertificateFile, t.StoreKeyFile, t.Hosts, t.Host}
}

func (m *Milter) StoreOf() Store {
	return Store{milterOwner, m.Store, m.StorePasswordFile, m.StoreSentinelPasswordFile, m.StoreCAFile, m.StoreCertificateFile, m.StoreKeyFile, m.Hosts, ""}
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
	if !s.Shared() {
		return s.Store
	}
	if u, err := limit.ParseRedisURL(s.Store); err == nil && !u.HasPassword {
		return s.Store
	}
	return "unreadable"
}

// InTheClear reports whether what is told to the store, and the password, cross a network without
// TLS.
func (s *Store) InTheClear() bool {
	u, err := limit.ParseRedisURL(s.Store)
	if err != nil || u.TLS {
		return false
	}
	return slices.ContainsFunc(u.Hosts, func(h string) bool {
		host, _, err := net.SplitHostPort(h)
		return err == nil && !IsLoopback(host)
	})
}

// Kind returns how the store is set up; it is a shared one.
func (s *Store) Kind() limit.RedisKind {
	u, err := limit.ParseRedisURL(s.Store)
	if err != nil {
		return limit.RedisServer
	}
	return u.Kind
}

// Shared reports whether several hosts can use the store.
func (s *Store) Shared() bool { return s.Store != "memory:" && s.File() == "" }

// completeStore fills in the default file below dir and makes a file's name absolute, which starts
// at the configuration's folder.
func completeStore(store *string, base, dir, name string) {
	if *store == "" {
		*store = "bolt:" + filepath.Join(dir, name)
	}
	if f, ok := strings.CutPrefix(*store, "bolt:"); ok && f != "" {
		*store = "bolt:" + under(base, f)
	}
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
	case s.Shared():
		k.storeFiles(s)
	}
	if s.Hosts < 1 || s.Hosts > maxHosts {
		k.fail(section+".hosts", "%d hosts cannot share a store; count this one too, and no more than %d", s.Hosts, maxHosts)
	}
	if s.Host != "" && !plainWord.MatchString(s.Host) {
		k.fail(section+".host", "%q is not a name; write letters, digits, dot, dash and underscore", Clip(s.Host))
	}
}

// storeFiles checks the files with which a service logs in to a store that hosts share.
func (k *checker) storeFiles(s Store) {
	section := s.owner.section
	u, err := limit.ParseRedisURL(s.Store)
	if err != nil {
		return // said already
	}
	for _, f := range []struct {
		key, file string
		ok        bool
		want      string
	}{
		{"store_ca_file", s.CAFile, u.TLS, "without TLS there is no certificate to look at; write rediss:// in store:, or remove this line"},
		{"store_certificate_file", s.CertificateFile, u.TLS, "without TLS nothing is shown to the store; write rediss:// in store:, or remove this line"},
		{"store_key_file", s.KeyFile, s.CertificateFile != "", "a key needs its certificate; write store_certificate_file: too"},
		{"store_sentinel_password_file", s.SentinelPasswordFile, u.Kind == limit.RedisSentinel, "there are no sentinels here; write redis+sentinel:// in store:, or remove this line"},
	} {
		if f.file != "" && !f.ok {
			k.fail(section+"."+f.key, "%s", f.want)
		}
	}
	if !k.all && !(k.milter && s.owner == milterOwner) && !(k.files && s.owner == tokenOwner) {
		return
	}
	for _, f := range []struct{ key, file string }{{"store_password_file", s.PasswordFile}, {"store_sentinel_password_file", s.SentinelPasswordFile}} {
		if f.file != "" {
			_, err := entra.ReadPassword(f.file, s.owner.unit)
			k.file(section+"."+f.key, err)
		}
	}
	if s.CAFile != "" {
		k.file(section+".store_ca_file", entra.CheckAnchors(s.CAFile, s.owner.unit))
	}
	if s.CertificateFile != "" {
		k.file(section+".store_certificate_file", entra.CheckKeyPair(s.CertificateFile, s.KeyFile, s.owner.unit))
	}
}

// Redis says how to reach the store, which is a shared one.
func (s *Store) Redis(c *Site) (limit.Redis, error) {
	o := limit.Redis{URL: s.Store, Tenant: strings.ToLower(c.Tenant.ID)}
	const hint = "the user of the service has to be able to read it, and nobody else"
	for _, f := range []struct {
		key, file string
		to        *string
	}{{"store_password_file", s.PasswordFile, &o.Password}, {"store_sentinel_password_file", s.SentinelPasswordFile, &o.SentinelPassword}} {
		if f.file == "" {
			continue
		}
		password, err := entra.ReadPassword(f.file, s.owner.unit)
		if err != nil {
			return o, exit.Errorf(exit.Config, hint, "%s.%s: %w", s.owner.section, f.key, err)
		}
		*f.to = string(password)
	}
	for _, f := range []struct {
		key, file string
		to        *string
	}{{"store_ca_file", s.CAFile, &o.CAFile}, {"store_certificate_file", s.CertificateFile, &o.CertificateFile}, {"store_key_file", s.KeyFile, &o.KeyFile}} {
		if f.file == "" {
			continue
		}
		path, err := entra.ResolveFile(f.file)
		if err != nil {
			return o, exit.Errorf(exit.Config, hint, "%s.%s: %w", s.owner.section, f.key, err)
		}
		*f.to = path
	}
	return o, nil
}

// maxHosts is how many can share Microsoft's 30 messages a minute so that each has one of them when
// it is alone: (30 - 3) of them; see [ledger.Shared].
const maxHosts = 27

func (k *checker) storeURL(path, s string) {
	const want = "write bolt:FILE, redis://HOST:6379/0 (rediss:// for TLS), redis+sentinel://HOST:26379,HOST:26379/MASTER, redis+cluster://HOST:6379,HOST:6379, unix:///SOCKET, or memory:"
	u, err := limit.ParseRedisURL(s)
	switch {
	case errors.Is(err, limit.ErrRedisScheme) && strings.Contains(s, "@"): // it may hold a password
		k.fail(path, "this is not a store; %s", want)
	case errors.Is(err, limit.ErrRedisScheme):
		k.fail(path, "%q is not a store; %s", Clip(s), want)
	case errors.Is(err, limit.ErrRedisURL):
		k.fail(path, "this is not a store, or an option of it is not known; %s", want)
	case err != nil:
		k.fail(path, "%v", err)
	case u.HasPassword:
		k.fail(path, "a password does not stand in this file; write it into a file and name that under store_password_file")
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
