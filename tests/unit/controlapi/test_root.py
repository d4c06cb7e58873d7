"""The root certificate: another one is begun, keys are here or outside."""

from __future__ import annotations

import msgspec
import pytest

from manager.ca.root import RootCA, create_root
from manager.ca.rotation import NewRoot
from manager.controlapi import Control
from manager.store import Store
from proto.errors import InvalidError, SequenceConflictError
from proto.objects import ExternalCA

replace = msgspec.structs.replace
NOW = 1_000_000.0
"""What the clock of these tests shows."""


@pytest.fixture
async def root(control: Control, store: Store) -> RootCA:
    """Give the cluster a root of its own."""
    made = create_root(NOW)
    cluster = replace(
        control.cluster(),
        root_ca_certificate_pem=made.certificate_pem,
        root_ca_key_pem=made.key_pem,
    )
    await store.update(lambda tx: tx.update(cluster))
    return made


async def test_a_rotation_is_forced_once(control: Control, root: RootCA):
    """The counter begins one when it changes, and the old root stays beside the new one."""
    old = control.cluster()
    spec = replace(old.spec, ca_force_rotate=old.spec.ca_force_rotate + 1)
    await control.update_cluster(old.version, spec)
    begun = control.cluster()
    assert begun.root_rotation is not None
    assert begun.root_ca_certificate_pem == root.certificate_pem
    assert begun.root_rotation.certificate_pem != root.certificate_pem
    assert begun.spec == spec
    await control.update_cluster(begun.version, spec, rotate_worker_token=True)
    assert control.cluster().root_rotation == begun.root_rotation
    with pytest.raises(SequenceConflictError):
        await control.update_cluster(begun.version, replace(spec, ca_force_rotate=9))


async def test_a_root_of_ones_own_comes_in(control: Control, root: RootCA):
    """It needs its key; naming the present root again gives the rotation up."""
    old = control.cluster()
    own = create_root(NOW)
    for new, sentence in (
        (NewRoot(certificate_pem=own.certificate_pem), "there is no key for the root certificate"),
        (NewRoot(key_pem=own.key_pem), "signing CA certificate has to be given as well"),
        (NewRoot(certificate_pem="x", key_pem="y"), "not a certificate in PEM"),
    ):
        with pytest.raises(InvalidError, match=sentence):
            await control.update_cluster(old.version, old.spec, new_root=new)
    assert control.cluster() == old
    new = NewRoot(certificate_pem=own.certificate_pem, key_pem=own.key_pem)
    await control.update_cluster(old.version, old.spec, new_root=new)
    rotation = control.cluster().root_rotation
    assert rotation is not None
    assert rotation.certificate_pem.strip() == own.certificate_pem.strip()
    back = NewRoot(certificate_pem=root.certificate_pem, key_pem=root.key_pem)
    await control.update_cluster(control.cluster().version, old.spec, new_root=back)
    assert control.cluster().root_rotation is None
    assert control.cluster().root_ca_key_pem == root.key_pem


async def test_an_authority_outside_signs(control: Control, root: RootCA):
    """The key may be given away only to one that is named, which then cannot be dropped."""
    old = control.cluster()
    outside = ExternalCA(url="https://ca.example", ca_cert=root.certificate_pem)
    spec = replace(old.spec, external_cas=(outside,))
    keyless = NewRoot(certificate_pem=root.certificate_pem)
    await control.update_cluster(old.version, spec, new_root=keyless)
    held = control.cluster()
    assert held.spec.external_cas == (outside,)
    assert not held.root_ca_key_pem
    with pytest.raises(InvalidError, match="no external authority that has it"):
        await control.update_cluster(held.version, replace(spec, external_cas=()))
    assert control.cluster() == held


async def test_an_authority_may_be_named_beside_the_key(control: Control, root: RootCA):
    """Without a rotation nothing else changes."""
    old = control.cluster()
    spec = replace(old.spec, external_cas=(ExternalCA(url="https://ca.example"),))
    await control.update_cluster(old.version, spec)
    assert control.cluster().spec == spec
    assert control.cluster().root_ca_key_pem == root.key_pem
    assert control.cluster().root_rotation is None
