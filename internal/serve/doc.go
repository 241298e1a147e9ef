// Package serve is what every service on a socket needs: the loop that accepts connections and
// outlives a shortage of descriptors, who the peer of a connection is, and how a socket's address
// is written.
package serve
