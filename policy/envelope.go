package policy

// By submission Exchange Online compares the envelope sender with what the mailbox may send as, so
// it leaves as the identity. A connector and direct send do not compare it with From. There the
// envelope sender of the message stays: reports of failures go where the application wants them
// (RFC 5321, section 4.4), and where it wants none, as with the null sender, there are none
// (section 4.5.5).

// keeps reports whether the envelope sender stays although it is not the identity. The client may
// ask for it, and the route takes it. It must not change the way either: where the policy service
// was not asked, Postfix finds the way by the envelope sender; see [Rules.RouteFrom]. Direct routes
// are found by the recipients.
func (p *Rules) keeps(r *Request, h *header, d *Decision) bool {
	if d.bySubmission() || d.Client.own {
		return false
	}
	sameWay := r.Routed || d.Route.Type == Direct
	if h.null {
		return sameWay
	}
	if h.sender.IsZero() || h.sender.Same(d.Identity) || !d.Client.maySend(h.sender) {
		return false
	}
	_, ok := p.onRoute(d.Route, h.sender, false)
	return ok && (sameWay || p.RouteFrom(h.sender.String()) == p.RouteFrom(d.Identity.String()))
}

// envelope settles the envelope sender, and says what becomes of it.
func (p *Rules) envelope(r *Request, h *header, d *Decision) {
	d.Kept = p.keeps(r, h, d)
	d.NoBounce = h.null && !d.Kept
	d.Sender = h.newSender(d.Identity, d.Kept)
	switch {
	case d.NoBounce:
		d.because(ReasonNullSender, d.Identity.String(), "")
	case d.Kept && h.null:
		d.because(ReasonNullKept, d.Route.Name, "")
	case d.Kept: // who it leaves as stays the last reason
		last := len(d.Reasons) - 1
		d.Reasons = append(d.Reasons[:last], Reason{ReasonSenderKept, h.sender.String(), d.Route.Name}, d.Reasons[last])
	}
}
