// Package userns gives instances users of their own: a user namespace each, in which the users 0 to
// 65535 are others of the node, so that root inside is nobody outside.
//
// A Pool keeps the namespaces that there are, bound to files as network namespaces are; which users of the
// node are behind one is this node's alone to know, and another thing after each restart of the host.
// Therefore nothing on disk says it: layers, what is written over them, volumes and secrets have the
// users that tasks see, and mounts that translate (idmapped ones) stand between. What is read through
// such a mount on the node has the translated users.
//
// The kernel cannot do this to every file system. Works tries whether it can to the one where images are.
package userns
