package classes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/policy"
)

// Advices is about what Postfix delivers itself.
var Advices = map[string]finding.Advice{
	"missing": {Means: "the milter does not know that Postfix delivers this itself, takes all mail for its own, and so refuses mail of strangers to these recipients", Do: "sendas postfix enable"},
	"stale":   {Means: "Postfix's settings or tables have changed since: the milter may refuse mail of strangers to new recipients here, or let pass what a new alias sends outside", Do: "sendas postfix classes"},
	"broken":  {Means: "the milter cannot use the file, and takes all mail for its own, or goes by what it read before", Do: "sendas postfix classes"},
	"opaque": {Means: "whether these tables lead mail for recipients here outside, under a stranger's name, cannot be told, so such mail counts as sendas' own: that of strangers is refused",
		Do: "put what leads outside into a table that can be listed (hash, lmdb, texthash); or, where nothing leads outside, write in sendas.yaml: milter: {received: trust}; or, where no stranger is to send here: {received: reject}"},
}

// Check compares what the milter was told with what Postfix's settings say now.
func Check(ctx context.Context, s finding.Section, run postfix.Runner, p *postfix.Setup) {
	const id, what = "kept", "that Postfix delivers itself"
	if os.Geteuid() != 0 {
		s.Skip(id, what, "only root can read all of Postfix's tables; type: sudo sendas doctor")
		return
	}
	now := Collect(ctx, run, p)
	CheckOpaque(s, now, p)
	path := p.Config.Milter.ClassesFile
	kept, err := Load(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && now.Receives:
		s.Fail(id, what, Describe(now)+"; "+path+" is not there", Advices["missing"])
	case errors.Is(err, fs.ErrNotExist):
		s.Skip(id, what, "%s is not there, and this host receives no mail of others", path)
	case err != nil:
		s.Fail(id, what, err.Error(), Advices["broken"])
	case !same(kept, now):
		s.Warn(id, what, fmt.Sprintf("%s; %s says something else", Describe(now), path), Advices["stale"])
	default:
		s.Ok(id, what, "%s", Describe(now))
	}
}

// CheckOpaque says which tables leave a doubt, where mail of strangers comes in at all.
func CheckOpaque(s finding.Section, now *policy.ClassData, p *postfix.Setup) {
	if policy.Received(p.Config.Milter.Received) != policy.PassReceived || !now.Receives {
		return
	}
	var list []string
	for _, o := range now.Opaque {
		if text := o.Setting + " (" + o.Table + ")"; (o.Doubt == policy.DoubtAlias || o.Doubt == policy.DoubtLocal) && !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	if len(list) > 0 {
		s.Fail("opaque", "that Postfix delivers itself", "cannot be listed: "+strings.Join(list, ", "), Advices["opaque"])
	}
}

// same reports whether two collections say the same.
func same(a, b *policy.ClassData) bool {
	x, errX := encode(a)
	y, errY := encode(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
