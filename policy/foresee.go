package policy

import "slices"

// A Forecast is what can be said of a message before its header has come.
type Forecast struct {
	Client *Client // nil where none matched
	Reply  *Reply  // with what [Rules.Decide] would surely refuse the message; nil where it depends on the header
	// Filter is the transport and next-hop for the whole message, "" where Postfix finds the way by
	// its tables. It is the same for every recipient and every sender of a client, because Postfix
	// keeps the last one.
	Filter  string
	Reasons []Reason
	// Open tells that limits have nothing to say of it: Postfix delivers it elsewhere, or it cannot be
	// told without Postfix's own word, which a milter hears.
	Open bool
}

// Foresee says what is known when the client has named one recipient: r holds that one, and no
// fields. It takes the first steps of [Rules.Decide], so it never refuses what that
// would accept.
func (p *Rules) Foresee(r *Request) Forecast {
	d := Decision{Action: Accept}
	if p.passes(r, &d) {
		return Forecast{Reasons: d.Reasons, Open: true}
	}
	ok := p.admitted(r, &d)
	f := Forecast{Client: d.Client, Reply: d.Reply, Reasons: d.Reasons}
	if ok {
		f.Filter = p.filter(d.Client)
	}
	switch {
	case slices.ContainsFunc(r.Places, func(at Place) bool { return at.Verdict == Doubtful }):
		f.Reply, f.Open = nil, true
	case f.Client == nil && slices.ContainsFunc(r.Places, func(at Place) bool { return at.Unheard }):
		f.Reply = nil
	}
	return f
}

// filter tells which clients' mail does not go the way that Postfix's tables say. Where a client
// has a direct route, transport_maps sends mail for own recipients there, so the others' mail has
// to be kept out of it.
func (p *Rules) filter(c *Client) string {
	switch {
	case c.Route.Type == Connector:
		return c.Route.Destination()
	case c.Route.Type == Submission && p.direct != nil:
		return c.Route.Destination()
	}
	return ""
}
