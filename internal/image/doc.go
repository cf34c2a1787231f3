// Package image keeps images on a node and makes root file systems of them, without a daemon:
// containerd's content store, metadata and overlayfs snapshotter as libraries. Images come in as
// archives, from other nodes of the cluster, or from registries; every blob is verified against
// its digest. Pack makes an archive from files, for those who have no image builder.
package image
