package milter

import (
	"encoding/binary"
	"fmt"
	"strings"

	protocol "github.com/d--j/go-milter"

	"github.com/sendas/sendas/policy"
)

// An offer is what an MTA begins a connection with (SMFIC_OPTNEG): the version of the milter
// protocol that it speaks, what it lets a milter do, and which steps and replies it can leave out.
// No RFC tells; libmilter's mfdef.h and Postfix's milter8.c do. Connections with equal offers are
// of one kind.
type offer struct {
	version uint32
	actions protocol.OptAction
	steps   protocol.OptProtocol
}

// The versions that are served. Version 2 is that of Sendmail 8.12; 6, that of Sendmail 8.14, is
// the newest there is.
const (
	oldestVersion = 2
	newestVersion = protocol.MaxServerProtocolVersion
)

// Actions are what the milter asks Postfix to be allowed to do; "sendas doctor" knows it by them.
const Actions = protocol.OptAddHeader | protocol.OptChangeHeader | protocol.OptChangeFrom | protocol.OptQuarantine

// quiet are the steps and replies that no decision needs; the reply to the end of the message
// remains, and those to MAIL and RCPT where limits have something to say there. Strangers are
// turned away earlier by the policy service, which costs one request more.
const (
	quiet = protocol.OptNoConnect | protocol.OptNoHelo | protocol.OptNoData | protocol.OptNoEOH |
		protocol.OptNoBody | protocol.OptNoUnknown | protocol.OptNoHeaderReply
	quieter = quiet | protocol.OptNoMailReply | protocol.OptNoRcptReply
)

// ObservesBy reports whether an answer to an offer of everything, by the steps that it leaves out, is
// that of a milter that only observes: it alone wants to know HELO.
func ObservesBy(steps protocol.OptProtocol) bool { return steps&protocol.OptNoHelo == 0 }

// parseOffer reads an offer, which stands in a packet after its length.
func parseOffer(packet []byte) (offer, error) {
	if len(packet) < 13 || packet[0] != 'O' {
		return offer{}, fmt.Errorf("a milter connection does not begin with %.20q", packet)
	}
	o := offer{
		version: binary.BigEndian.Uint32(packet[1:]),
		actions: protocol.OptAction(binary.BigEndian.Uint32(packet[5:])),
		steps:   protocol.OptProtocol(binary.BigEndian.Uint32(packet[9:])),
	}
	if o.version < oldestVersion {
		return offer{}, fmt.Errorf("the mail server speaks version %d of the milter protocol; %d to %d are served", o.version, oldestVersion, newestVersion)
	}
	return o, nil
}

// choosesMacros reports whether the MTA sends the macros that it is asked for. One that does not
// has some by itself, which may lack the client's address; the connection's own step has it.
func (o offer) choosesMacros() bool { return o.actions&protocol.OptSetMacros != 0 }

// wishes are what a connection is asked for besides, as things stand when it begins.
type wishes struct {
	early bool // limits have something to say to MAIL and RCPT
	helo  bool // the name in HELO is of interest, which no macro has
	size  bool // the size of a message makes a difference, so bodies are of interest, no further than that
}

// terms returns what a connection is served on: what we ask for, as far as it is offered. What
// cannot be left out is answered.
func (o offer) terms(w wishes) (protocol.OptAction, protocol.OptProtocol) {
	steps := quieter
	if w.early {
		steps = quiet
	}
	if w.helo {
		steps = steps&^protocol.OptNoHelo | protocol.OptNoHeloReply
	}
	if w.size {
		steps = steps&^protocol.OptNoBody | protocol.OptSkip
	}
	if !o.choosesMacros() {
		steps &^= protocol.OptNoConnect | protocol.OptNoHelo
	}
	return (Actions | protocol.OptSetMacros) & o.actions, steps & o.steps
}

// options are those of the library's server for one connection.
func (o offer) options(w wishes) []protocol.Option {
	actions, steps := o.terms(w)
	list := []protocol.Option{
		protocol.WithoutDefaultMacros(),
		protocol.WithWriteTimeout(0), // see conn.Write
		protocol.WithNegotiationCallback(func(_, _ uint32, _, _ protocol.OptAction, _, _ protocol.OptProtocol, size protocol.DataSize) (uint32, protocol.OptAction, protocol.OptProtocol, protocol.DataSize, error) {
			return min(o.version, newestVersion), actions, steps, size, nil
		}),
	}
	if !o.choosesMacros() {
		return list
	}
	return append(list,
		protocol.WithMacroRequest(protocol.StageConnect, []string{protocol.MacroClientAddr}),
		protocol.WithMacroRequest(protocol.StageMail, []string{protocol.MacroClientAddr, protocol.MacroClientPort,
			protocol.MacroClientName, protocol.MacroClientPTR, protocol.MacroAuthAuthen, protocol.MacroTlsVersion, protocol.MacroCertSubject, protocol.MacroQueueId}),
		protocol.WithMacroRequest(protocol.StageRcpt, []string{protocol.MacroRcptMailer, protocol.MacroRcptHost, protocol.MacroRcptAddr}),
		protocol.WithMacroRequest(protocol.StageEOM, []string{protocol.MacroQueueId}),
	)
}

// actionNames say what the MTA lets a milter do, and how libmilter calls it.
var actionNames = []struct {
	action      protocol.OptAction
	words, name string
}{
	{protocol.OptChangeFrom, "change the envelope sender", "SMFIF_CHGFROM"},
	{protocol.OptAddHeader, "add header fields", "SMFIF_ADDHDRS"},
	{protocol.OptChangeHeader, "change header fields", "SMFIF_CHGHDRS"},
	{protocol.OptQuarantine, "hold messages", "SMFIF_QUARANTINE"},
	{protocol.OptSetMacros, "ask who the client is", "SMFIF_SETSYMLIST"},
}

func describeActions(actions protocol.OptAction) string {
	var list []string
	for _, a := range actionNames {
		if actions&a.action != 0 {
			list = append(list, a.words+" ("+a.name+")")
		}
	}
	return strings.Join(list, ", ")
}

// stepNames say what an MTA can leave out.
var stepNames = []struct {
	step        protocol.OptProtocol
	words, name string
}{
	{protocol.OptNoConnect, "the connection", "SMFIP_NOCONNECT"},
	{protocol.OptNoHelo, "HELO", "SMFIP_NOHELO"},
	{protocol.OptNoMailReply, "the reply to MAIL", "SMFIP_NR_MAIL"},
	{protocol.OptNoRcptReply, "the reply to RCPT", "SMFIP_NR_RCPT"},
	{protocol.OptNoData, "DATA", "SMFIP_NODATA"},
	{protocol.OptNoHeaderReply, "the replies to header fields", "SMFIP_NR_HDR"},
	{protocol.OptNoEOH, "the end of the header", "SMFIP_NOEOH"},
	{protocol.OptNoBody, "the body", "SMFIP_NOBODY"},
	{protocol.OptNoUnknown, "unknown commands", "SMFIP_NOUNKNOWN"},
}

func describeSteps(steps protocol.OptProtocol) string {
	var list []string
	for _, s := range stepNames {
		if steps&s.step != 0 {
			list = append(list, s.words+" ("+s.name+")")
		}
	}
	return strings.Join(list, ", ")
}

// maxKinds is how many kinds of offers are remembered, and so logged: a host has one or two MTAs.
const maxKinds = 20

// mention logs what an MTA does not offer, once for each kind of offer.
func (s *Server) mention(o offer) {
	lacks, answered := (Actions|protocol.OptSetMacros)&^o.actions, quieter&^o.steps
	if lacks == 0 && answered == 0 || !s.first(o) {
		return
	}
	attrs := []any{"version", o.version, "cannot_leave_out", describeSteps(answered)}
	if lacks == 0 {
		s.Log.Info("the mail server offers less of the milter protocol than Postfix does; it is served, more slowly", attrs...)
		return
	}
	s.Log.Warn("the mail server offers less of the milter protocol than Postfix does; messages that need what it lacks are deferred",
		append(attrs, "does_not_let_us", describeActions(lacks))...)
}

// first reports whether an offer is the first of its kind.
func (s *Server) first(o offer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kinds == nil {
		s.kinds = make(map[offer]bool)
	}
	if s.kinds[o] || len(s.kinds) >= maxKinds {
		return false
	}
	s.kinds[o] = true
	return true
}

// untold reports whether the MTA could not be asked who the client is, and has not told it by
// itself.
func (t *transaction) untold() bool {
	return !t.offer.choosesMacros() && !t.req.Peer.Addr.IsValid() && t.req.Peer.Login == ""
}

// needs returns what the MTA must let us do for a decision.
func needs(d *policy.Decision) (actions protocol.OptAction) {
	if d.Sender != "" {
		actions |= protocol.OptChangeFrom
	}
	for _, c := range d.Changes {
		switch c.Op {
		case policy.Add:
			actions |= protocol.OptAddHeader
		case policy.Change, policy.Delete:
			actions |= protocol.OptChangeHeader
		}
	}
	return actions
}

// lacking defers a message that the MTA does not let us change as it must be.
func (t *transaction) lacking(d *policy.Decision, actions protocol.OptAction) (*protocol.Response, error) {
	d.Action, t.limit = policy.Defer, "the mail server does not let sendas "+describeActions(actions)
	d.Reasons = append(d.Reasons, policy.Reason{Code: policy.ReasonOffer})
	return respond(&policy.Reply{Code: 451, Enhanced: "4.3.5", Text: t.limit + ", as this message needs; its administrator has to allow it"})
}
