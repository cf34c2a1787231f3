// Package marathon answers the HTTP API of Marathon 1.5 and later, and that of Metronome for jobs, over
// the same objects that every other API shows.
//
// An app "/shop/front/web" is the workload "front_web" of the application "shop"; "/web" is the workload
// "web" outside any application. What was put is kept in the workload's extension "marathon", with its
// defaults; earlier versions, groups and deployments are keys below "marathon/". What other APIs made is
// listed as apps, too, and can be scaled, restarted and deleted.
//
// What is not honoured is refused by name, in the form of a validation error.
package marathon
