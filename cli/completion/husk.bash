# SPDX-License-Identifier: Apache-2.0
# husk.bash - completion for bash

_husk() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
	local words=

	case $prev in
	--config | --kernel | --initrd | --disk | --base | --vsock)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return ;;
	--engine) words="auto kvm soft soft,interp" ;;
	--device) words="virtio-blk,file= virtio-net,nat virtio-rng virtio-vsock,port= debug-exit pc-testdev" ;;
	--net) words="shared tap= unix= unixgram= fd= none" ;;
	--serial) words="stdio pty none" ;;
	--reboot) words="exit again" ;;
	--format | --base-format | --from-format) words="raw qcow2" ;;
	--cmdline | --cpus | --forward | --memory | --timeout) return ;;
	*)
		case ${COMP_WORDS[1]} in
		run) words="--config --kernel --initrd --cmdline --cpus --memory
			--engine --disk --net --forward --device --vsock --serial --reboot --stats --timeout
			--help" ;;
		doctor) words="--json --help" ;;
		disk) words="create info resize convert compact check --format
			--base --base-format --cluster --lazy-refcounts --force
			--shrink --from-format --snapshot --repair --json --help"
			mapfile -t COMPREPLY < <(compgen -f -W "$words" -- "$cur")
			return ;;
		esac
		[ "$COMP_CWORD" -gt 1 ] || words="run disk doctor --help --version" ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _husk husk
