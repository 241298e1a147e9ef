package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/lease"
)

// askTime bounds a question to the token service.
const askTime = 10 * time.Second

// askService asks one of the token service's maps for the administrator, and decodes the JSON that it
// answers with; found is false where the map has nothing for the key.
func askService(ctx context.Context, c *config.Site, name, key string, answer any) (found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	network, addr := c.Token.Listen.Network()
	fail := func(hint string, err error) error {
		return exit.Errorf(exit.TempFail, hint, "asking the token service at %s: %w", c.Token.Listen, err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if errors.Is(err, fs.ErrPermission) {
		return false, fail("type it as root, or as the user of the token service", err)
	}
	if err != nil {
		return false, fail(`type "systemctl status sendas-token"; its log is "journalctl -u sendas-token"`, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(askTime))
	r, err := lease.Ask(conn, name, key)
	switch {
	case errors.Is(err, io.EOF):
		return false, fail("type it as root, or as the user of the token service; after an upgrade, restart the service", errors.New("it sends this user away"))
	case err != nil:
		return false, fail("", err)
	case r.Status == lease.NotFound:
		return false, nil
	case r.Status != lease.OK:
		return false, fail("after an upgrade, restart the service", errors.New(r.Value))
	}
	if err := json.Unmarshal([]byte(r.Value), answer); err != nil {
		return false, fail("", errors.New("what answers is not the token service of this version"))
	}
	return true, nil
}
