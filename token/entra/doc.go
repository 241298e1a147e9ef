// Package entra gets access tokens from Microsoft Entra and keeps them fresh.
//
// A [Source] asks Entra for one token: [ClientCredentials] with a client secret, a certificate or
// another issuer's token; [ManagedIdentity]; [Delegated] for a user who signed in ([SignIn]), whose
// refresh token lies in a [Vault]. A [Refresher] decorates a Source so that a token is always in
// memory, asked for ahead of time, once, by one goroutine.
//
// What goes wrong comes back as one of three types, so that callers decide by type and never by
// reading texts:
//
//   - [FileError]: the secret or certificate file cannot be used; nothing was sent.
//   - [RefusedError]: Microsoft answered with an OAuth error; it keeps the code.
//   - [UnreachableError]: no answer, or one that is not Microsoft's; try later.
//
// Secrets have the type [Secret], which does not print, and no error of this package holds a
// secret, a client assertion or a token.
package entra
