// Package lab runs a throw-away Postfix of one's own, for end-to-end tests and
// demonstrations: [StartPostfix] starts it from an empty folder with nothing
// of the system's configuration, [Send] speaks raw SMTP to it.
//
// The instance is laid out as Debian lays out the real one: smtp(8), smtpd(8)
// and cleanup(8) run chrooted in the queue directory, with the credentials of
// user postfix. It listens on one high port of 127.0.0.1, can connect to
// 127.0.0.1 only, and knows no names but those in [PostfixConfig.Hosts], so it
// cannot send mail into the world by mistake. It needs root, as Postfix does.
package lab
