// Package protocolpb holds the generated messages of the service protocol (V5 to V7), the payloads of the
// frames between the server and a service endpoint. Their meaning is described in package protocol.
package protocolpb
