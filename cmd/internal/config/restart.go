package config

// TokenRestart returns the keys in which c differs from the configuration with which the token
// service started, and which it takes up at its next start only: what it listens on, and where it
// keeps what it counts. All others take effect when it loads the file.
func (c *Site) TokenRestart(started *Site) []string {
	now, was := &c.Token, &started.Token
	return changed([]setting{
		{"token.listen", now.Listen != was.Listen},
		{"token.http", now.HTTP != was.HTTP},
		{"token.state_dir", now.StateDir != was.StateDir},
		{"token.store", now.Store != was.Store},
		{"token.store_password_file", now.StorePasswordFile != was.StorePasswordFile},
		{"token.store_sentinel_password_file", now.StoreSentinelPasswordFile != was.StoreSentinelPasswordFile},
		{"token.store_ca_file", now.StoreCAFile != was.StoreCAFile},
		{"token.store_certificate_file", now.StoreCertificateFile != was.StoreCertificateFile},
		{"token.store_key_file", now.StoreKeyFile != was.StoreKeyFile},
		{"token.hosts", now.Hosts != was.Hosts},
		{"token.host", now.Host != was.Host},
		{"record.token_file", c.Record.TokenFile != started.Record.TokenFile},
		{"tenant.id", c.Tenant.ID != started.Tenant.ID && sharesStore(now.StoreOf())},
	})
}

// MilterRestart is TokenRestart for the milter.
func (c *Site) MilterRestart(started *Site) []string {
	now, was := &c.Milter, &started.Milter
	return changed([]setting{
		{"milter.listen", now.Listen != was.Listen},
		{"milter.policy_listen", now.PolicyListen != was.PolicyListen},
		{"milter.http", now.HTTP != was.HTTP},
		{"milter.store", now.Store != was.Store},
		{"milter.store_password_file", now.StorePasswordFile != was.StorePasswordFile},
		{"milter.store_sentinel_password_file", now.StoreSentinelPasswordFile != was.StoreSentinelPasswordFile},
		{"milter.store_ca_file", now.StoreCAFile != was.StoreCAFile},
		{"milter.store_certificate_file", now.StoreCertificateFile != was.StoreCertificateFile},
		{"milter.store_key_file", now.StoreKeyFile != was.StoreKeyFile},
		{"milter.hosts", now.Hosts != was.Hosts},
		{"record.milter_file", c.Record.MilterFile != started.Record.MilterFile},
		{"tenant.id", c.Tenant.ID != started.Tenant.ID && sharesStore(now.StoreOf())},
	})
}

// sharesStore reports whether what is counted stands below the tenant's name, so that a connection
// to the store is one tenant's.
func sharesStore(s Store) bool { return s.Shared() }

// setting is a key, and whether its value is another one.
type setting struct {
	key     string
	changed bool
}

func changed(list []setting) []string {
	keys := []string{} // never null in JSON
	for _, s := range list {
		if s.changed {
			keys = append(keys, s.key)
		}
	}
	return keys
}
