# SPDX-License-Identifier: Apache-2.0
# husk.bash - completion for bash

_husk_names() {
	husk list 2>/dev/null | sed -n '2,$s/ .*//p'
}

_husk() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
	local words=

	case $prev in
	--from)
		mapfile -t COMPREPLY < <(compgen -f -W debian -- "$cur")
		return ;;
	--config | --ssh-key | --cloud-init | --kernel | --initrd | --disk | --base | --vsock | --share)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return ;;
	--engine) words="auto kvm soft soft,interp" ;;
	--device) words="virtio-blk,file= virtio-fs,sharedDir= virtio-net,nat virtio-rng virtio-balloon, virtio-serial, virtio-vsock,port= debug-exit pc-testdev" ;;
	--net) words="shared tap= unix= unixgram= fd= none" ;;
	--compress) words="zstd" ;;
	--name) words="$(_husk_names)" ;;
	--serial) words="stdio pty none" ;;
	--reboot) words="exit again" ;;
	--on-enospc) words="error pause" ;;
	--panic) words="stop go-on" ;;
	--console) words="stdio pty none unix=" ;;
	--format | --base-format | --from-format) words="raw qcow2" ;;
	--cmdline | --cpus | --env | --wait | --workdir | --forward | --gap | --memory | --timeout | --disk-size | --user) return ;;
	*)
		case ${COMP_WORDS[1]} in
		start | stop | kill | delete | info | console | exec | pause | resume | save | clone) words="$(_husk_names) --help" ;;&
		run) words="$(_husk_names) --config --kernel --initrd --cmdline --cpus --memory
			--engine --disk --net --forward --share --device --vsock --serial --on-enospc --reboot --panic --gap --console --restful-uri --stats --timeout
			--help" ;;
		create) words="--from --overlay --disk-size --user --ssh-key --cloud-init --kernel --initrd
			--cmdline --cpus --memory --engine --disk --net --forward
			--share --device --vsock --on-enospc --reboot --panic --gap --console --help" ;;
		start) words="$words --foreground --console --restful-uri --stats" ;;
		stop) words="$words --timeout --force" ;;
		delete) words="$words --force" ;;
		info) words="$words --json" ;;
		save) words="$words --stop --compress" ;;
		restore) words="--name --paused --preload --engine --force --serial
			--stats --timeout --help" ;;
		clone) words="$words --count --name --paused" ;;
		inspect) words="--check --json --help" ;;
		list) words="--json --help" ;;
		exec) words="$words --tty --env --workdir --user --no-stdin
			--vsock --wait" ;;
		doctor) words="--json --help" ;;
		disk) words="create info resize convert extract compact check --format
			--base --base-format --cluster --lazy-refcounts --force
			--shrink --from-format --snapshot --repair --json --help"
			mapfile -t COMPREPLY < <(compgen -f -W "$words" -- "$cur")
			return ;;
		esac
		[ "$COMP_CWORD" -gt 1 ] || words="run create start stop
			kill delete list info console pause resume save restore clone inspect exec disk doctor --help --version" ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _husk husk
