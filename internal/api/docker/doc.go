// Package docker answers the Docker Engine's API: the whole cluster as one virtual Docker host, and
// Swarm mode, over the same objects that every other API shows. Wire types are those of
// github.com/moby/moby/api; the routes are ours.
//
// What it makes are our nouns, through package core. A container of `docker run` is a workload of
// count 1 in the application "containers"; networks, volumes, secrets, configs and services stand
// outside any application, unless the label com.docker.stack.namespace puts them into that of a
// stack, whose name their Docker names then begin with ("shop_web" is "shop/web"). What the Docker
// API says of an object and the core does not know stays in the object's extension "docker", so that
// an inspection gives back what was put.
//
// A request or field that is not honoured is refused by name, with status 501.
package docker
