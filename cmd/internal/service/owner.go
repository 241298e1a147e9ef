package service

import (
	"fmt"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"syscall"

	"github.com/sendas/sendas/internal/exit"
)

// TokenUser is who the unit runs the token service as.
const TokenUser = "sendas-token"

// MilterUser is the user as whom the package runs the milter.
const MilterUser = "sendas"

// WrongOwner says what to do about a file that the user cannot read; "" where it can, or where
// there is no such user.
func WrongOwner(file, name string) string {
	u, err := user.Lookup(name)
	if err != nil {
		return ""
	}
	info, err := os.Stat(file)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || strconv.FormatUint(uint64(st.Uid), 10) == u.Uid {
		return ""
	}
	state := path.Dir(path.Dir(file))
	return fmt.Sprintf("the token service runs as %s and may not read this file; type \"chown -R %s %s\"", name, name, state)
}

// AccountIDs looks a user up, with all groups.
func AccountIDs(name string) (uid uint32, gids []uint32, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, nil, err
	}
	list, err := u.GroupIds()
	if err != nil {
		list = []string{u.Gid}
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, nil, err
	}
	for _, g := range list {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			gids = append(gids, uint32(n))
		}
	}
	return uint32(id), gids, nil
}

// MayEnter reports whether a user may reach what lies in a folder; MayRead is the same for reading
// a file.
func MayEnter(info os.FileInfo, uid uint32, gids []uint32) bool { return permits(info, uid, gids, 1) }

func MayRead(info os.FileInfo, uid uint32, gids []uint32) bool { return permits(info, uid, gids, 4) }

// MayConnect is MayEnter for a unix socket (unix(7): it takes write permission).
func MayConnect(info os.FileInfo, uid uint32, gids []uint32) bool { return permits(info, uid, gids, 2) }

// permits reports whether the mode grants a user the bit, as open(2) decides: the owner's bits
// count for the owner alone.
func permits(info os.FileInfo, uid uint32, gids []uint32, bit os.FileMode) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	switch {
	case !ok || uid == 0:
		return true
	case st.Uid == uid:
		return mode&(bit<<6) != 0
	case slices.Contains(gids, st.Gid):
		return mode&(bit<<3) != 0
	}
	return mode&bit != 0
}

// UserIDs looks the users up who may ask for credentials.
func UserIDs(names []string) ([]uint32, error) {
	var list []uint32
	for _, n := range names {
		u, err := user.Lookup(n)
		if err != nil {
			return nil, exit.Errorf(exit.Config, "write the user that Postfix runs as (postconf mail_owner) into token.peers", "token.peers: %w", err)
		}
		id, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, exit.Errorf(exit.Config, "", "token.peers: user %q has the id %q", n, u.Uid)
		}
		list = append(list, uint32(id))
	}
	return list, nil
}
