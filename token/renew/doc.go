// Package renew replaces the certificate of an app before it ends, without anybody's hand: a
// [Keeper] makes a new key on this host, has Microsoft Graph add its certificate to the app
// registration (addKey, with a proof that the old key signs), asks Entra for a real token by it, and
// only then changes over. What it introduced before is taken from the registration some time later
// (removeKey, with a proof that the new key signs).
//
// Each step is written to the disk before the next one begins, and none takes away what works: until
// the new certificate has brought a token, and for a grace time after, the old one is there. A
// request for a token that one certificate cannot serve is made with the next of [Keeper.Pairs]. So
// a crash, a lost answer or a refusal at any point leaves a credential that works, and the next
// attempt goes on where the last one ended.
//
// Hosts that share an app each keep a key of their own, and take away only what they added
// themselves. The certificate of the configuration is the administrator's: it is never removed, and
// is used again where it ends later than ours.
//
// No key leaves the host; files are the user's of the token service alone.
package renew
