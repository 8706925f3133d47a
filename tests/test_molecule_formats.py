import bz2

import numpy as np
import pytest
import yaml
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from replicas import qm9_files, write_assets, write_qm9, write_tar

from graft.assets import fetch_asset, read_description
from graft.errors import UserError
from graft.molecule_formats import READERS, enumerate_molecules

HCNO = ["H", "C", "N", "O"]

# Three of QM9's molecules, one with fluorine and one that stands on the list of uncharacterised ones.
WATER = [("O", -0.0343604951, 0.9775395708, 0.0076015923), ("H", 0.0647664923, 0.0205721989, 0.0015346341)]
WATER += [("H", 0.8717903737, 1.3007924048, 0.0006931336)]
ETHYNE = [("C", 0.5995394918, 0.0, 1.0), ("C", -0.5995394918, 0.0, 1.0), ("H", 1.6616385861, 0.0, 1.0)]
ETHYNE += [("H", -1.6616385861, 0.000004, 1.0)]
FLUORIDE = [("H", 0.0, 0.0, 0.0), ("F", 0.0, 0.0, 0.918)]
CYANIDE = [("C", -0.0133239314, 1.1324657151, 0.0082758861), ("N", 0.0023107217, -0.0191585673, 0.0019287262)]
CYANIDE += [("H", -0.0278026991, 2.1989492, 0.0141537528)]
QM9 = {1: WATER, 2: FLUORIDE, 3: ETHYNE, 4: CYANIDE, 5: WATER[::-1]}
UNCHARACTERISED = [4]

ARCHIVE = "dsgdb9nsd.xyz.tar.bz2"
RULE = "=" * 80


def write_published(folder):
    """The two published files, the archive backwards: its order is not to be relied on."""
    write_qm9(folder, dict(reversed(QM9.items())), UNCHARACTERISED)


def write_npz(folder, **changes):
    """The packed file of the molecules of QM9 that are characterised and without fluorine."""
    kept = {index: atoms for index, atoms in QM9.items() if index not in UNCHARACTERISED and atoms is not FLUORIDE}
    atoms = [atom for molecule in kept.values() for atom in molecule]
    arrays = {
        "id": np.array(list(kept), np.int32),
        "n_atoms": np.array([len(molecule) for molecule in kept.values()], np.uint8),
        "atomic_number": np.array([{"H": 1, "C": 6, "N": 7, "O": 8}[symbol] for symbol, *_ in atoms], np.uint8),
        "position_milliangstrom": np.array([np.rint(np.multiply(p, 1000)) for _, *p in atoms], np.int16),
        **changes,
    }
    np.savez(folder / "qm9_hcno.npz", **{name: array for name, array in arrays.items() if array is not None})


def test_published_and_packed_qm9_are_the_same_molecules(tmp_path, caplog):
    caplog.set_level("INFO")
    write_published(tmp_path)
    write_npz(tmp_path)
    published, packed = READERS["qm9"](tmp_path, HCNO, 4), READERS["qm9_npz"](tmp_path, HCNO, 4)
    assert published.atomic_numbers.dtype == np.uint8
    assert published.atomic_numbers.tolist() == [[8, 1, 1, 0], [6, 6, 1, 1], [1, 1, 8, 0]]
    assert published.positions.dtype == np.float32
    assert published.positions.shape == (3, 4, 3)
    water = np.float32([[-0.034, 0.978, 0.008], [0.065, 0.021, 0.002], [0.872, 1.301, 0.001], [0, 0, 0]])
    assert np.array_equal(published.positions[0], water)
    assert np.array_equal(published.positions[1, 3], np.float32([-1.662, 0, 1]))
    assert np.array_equal(published.positions, packed.positions)
    assert np.array_equal(published.atomic_numbers, packed.atomic_numbers)
    assert "1 uncharacterised" in caplog.text
    assert "4 molecules, 1 of them left out" in caplog.text


def test_asset_list_names_both_formats_of_qm9_as_their_readers_do(repository, tmp_path):
    """The packed copy where a mirror holds nothing else, or not the list; the published files where it holds all."""
    assets = yaml.safe_load((repository / "config" / "assets.yaml").read_text())
    mirror, folder = tmp_path / "mirror", tmp_path / "asset"
    mirror.mkdir()

    def fetched():
        write_assets(assets, mirror, tmp_path / "assets.yaml")
        fetch_asset("qm9", assets["qm9"]["formats"], str(mirror), folder)
        description = read_description(folder)
        assert len(READERS[description["reader"]](folder, HCNO, 4).positions) == 3
        return description["reader"], description["note"], sorted(description["files"])

    write_npz(mirror)
    packed = ("qm9_npz", "packed copy, H C N O only", ["qm9_hcno.npz"])
    assert fetched() == packed
    write_tar(mirror / ARCHIVE, qm9_files(QM9))
    assert fetched() == packed
    write_published(mirror)
    assert fetched() == ("qm9", None, [ARCHIVE, "uncharacterized.txt"])


def test_elements_are_those_of_the_configuration(tmp_path):
    write_published(tmp_path)
    assert READERS["qm9"](tmp_path, [*HCNO, "F"], 4).atomic_numbers[1].tolist() == [1, 9, 0, 0]
    assert READERS["qm9"](tmp_path, ["H", "C"], 4).atomic_numbers.tolist() == [[6, 6, 1, 1]]
    with pytest.raises(UserError, match="no molecules"):
        READERS["qm9"](tmp_path, ["N"], 4)
    with pytest.raises(UserError, match="Xx"):
        READERS["qm9"](tmp_path, ["H", "Xx"], 4)


def test_packed_molecules_come_in_the_order_of_their_indices(tmp_path):
    write_npz(tmp_path, id=np.array([5, 3, 1]))
    assert READERS["qm9_npz"](tmp_path, HCNO, 4).atomic_numbers[:, 0].tolist() == [1, 6, 8]


def test_packed_molecules_do_not_stand_for_those_with_fluorine(tmp_path):
    write_npz(tmp_path)
    with pytest.raises(UserError, match="packed without molecules of F"):
        READERS["qm9_npz"](tmp_path, [*HCNO, "F"], 4)


def replaced(old, new):
    """QM9's files, with `new` for `old` in the third molecule."""
    files = qm9_files(QM9)
    third = files["dsgdb9nsd_000003.xyz"]
    assert old.encode() in third
    return files | {"dsgdb9nsd_000003.xyz": third.replace(old.encode(), new.encode(), 1)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (replaced("4\ngdb", "5\ngdb"), r"tar\.bz2:dsgdb9nsd_000003\.xyz: .*9 lines.*5 atoms"),
        (replaced("4\ngdb", "four\ngdb"), r"000003\.xyz: .*four"),
        (replaced("gdb 3", "gdc 3"), r"000003\.xyz: .*gdc"),
        (replaced("gdb 3", "gdb three"), r"000003\.xyz: .*three"),
        (replaced("C\t", "Xx\t"), r"000003\.xyz: .*Xx is no element"),
        (replaced("1.6616385861", "1.66x"), r"000003\.xyz: .*1\.66x"),
        (replaced("1.6616385861\t", ""), r"000003\.xyz: "),
        (replaced("1.6616385861", "nan"), r"000003\.xyz: .*finite"),
        (replaced("4\ngdb 3", "4\ngdb 7"), r"tar\.bz2: molecule gdb 3 is missing"),
        ({"readme.txt": b"QM9"}, r"tar\.bz2: no molecules"),
    ],
)
def test_wrong_file_of_qm9_is_named(tmp_path, files, message):
    write_published(tmp_path)
    write_tar(tmp_path / ARCHIVE, files)
    with pytest.raises(UserError, match=message) as error:
        READERS["qm9"](tmp_path, HCNO, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 30, 400, -20])
def test_truncated_archive_is_named(tmp_path, kept):
    write_published(tmp_path)
    path = tmp_path / ARCHIVE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"dsgdb9nsd\.xyz\.tar\.bz2: not a readable tar archive"):
        READERS["qm9"](tmp_path, HCNO, 4)


@pytest.mark.parametrize("position", [0, 100, 400])
def test_damaged_archive_is_named(tmp_path, position):
    write_published(tmp_path)
    path = tmp_path / ARCHIVE
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"dsgdb9nsd\.xyz\.tar\.bz2: not a readable tar archive"):
        READERS["qm9"](tmp_path, HCNO, 4)


def test_archive_whose_last_molecules_are_missing_is_named(tmp_path):
    """Their indices leave no gap, and tarfile takes an end between two files for the archive's end."""
    write_qm9(tmp_path, QM9, UNCHARACTERISED)
    content = bz2.decompress((tmp_path / ARCHIVE).read_bytes())
    (tmp_path / ARCHIVE).write_bytes(bz2.compress(content[: content.find(b"dsgdb9nsd_000004")]))
    with pytest.raises(UserError, match=r"tar\.bz2: not a readable tar archive .*end-of-archive"):
        READERS["qm9"](tmp_path, HCNO, 4)


@pytest.mark.parametrize("name", [ARCHIVE, "uncharacterized.txt"])
def test_missing_file_of_qm9_is_named(tmp_path, name):
    write_published(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        READERS["qm9"](tmp_path, HCNO, 4)


@pytest.mark.parametrize("text", ["", "<html>", f"{RULE}\n{RULE}\n", f"{RULE}\n#\n{RULE}\n   4   C   C   C   6.0\n"])
def test_list_of_uncharacterised_molecules_is_whole(tmp_path, text):
    write_published(tmp_path)
    (tmp_path / "uncharacterized.txt").write_text(text)
    with pytest.raises(UserError, match=r"uncharacterized\.txt"):
        READERS["qm9"](tmp_path, HCNO, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"position_milliangstrom": None},
        {"id": np.arange(4)},
        {"n_atoms": np.array([3, 4, 4])},
        {"atomic_number": np.ones(9, np.uint8)},
        {"position_milliangstrom": np.zeros((10, 2), np.int16)},
        {"atomic_number": np.array(["C"] * 10, object)},
    ],
)
def test_packed_file_whose_arrays_do_not_fit_is_named(tmp_path, changes):
    write_npz(tmp_path, **changes)
    with pytest.raises(UserError, match=r"qm9_hcno\.npz: not a readable"):
        READERS["qm9_npz"](tmp_path, HCNO, 4)


@pytest.mark.parametrize("kept", [0, 10, 500, -30])
def test_truncated_packed_file_is_named(tmp_path, kept):
    write_npz(tmp_path)
    path = tmp_path / "qm9_hcno.npz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"qm9_hcno\.npz: not a readable"):
        READERS["qm9_npz"](tmp_path, HCNO, 4)


def embedded(smiles, seed=1):
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=seed)
    return molecule


def write_sdf(path, molecules):
    path.parent.mkdir(exist_ok=True)
    with Chem.SDWriter(str(path)) as writer:
        for molecule in molecules:
            writer.write(molecule)


def write_xyz(path, molecules):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(map(Chem.MolToXYZBlock, molecules)))


@pytest.mark.parametrize(("form", "write"), [("sdf", write_sdf), ("xyz", write_xyz)])
def test_molecules_of_a_folder(tmp_path, form, write):
    """Every file, also behind a link, and every record, in the order of paths."""
    molecules = [embedded(smiles) for smiles in ["CCO", "C[N+](=O)[O-]", "c1cc[nH]c1", "O"]]
    write(tmp_path / "mirror" / f"b.{form}", molecules[2:])
    write(tmp_path / "mirror" / f"a.{form.upper()}", molecules[:2])
    (tmp_path / "mirror" / "readme.txt").write_text("two files")
    (tmp_path / "asset").mkdir()
    (tmp_path / "asset" / "molecules").symlink_to(tmp_path / "mirror")
    found = READERS[form](tmp_path / "asset", HCNO, 29)
    assert found.positions.shape == (4, 10, 3)
    for row, molecule in enumerate(molecules):
        atoms = molecule.GetNumAtoms()
        assert found.atomic_numbers[row].tolist() == [a.GetAtomicNum() for a in molecule.GetAtoms()] + [0] * (
            10 - atoms
        )
        assert np.allclose(found.positions[row, :atoms], molecule.GetConformer().GetPositions(), atol=1e-4)
        assert not found.positions[row, atoms:].any()


READERS_OF_A = {
    "qm9": (write_published, r"000003\.xyz: 4 atoms"),
    "qm9_npz": (write_npz, r"qm9_hcno\.npz: gdb 3: 4 atoms"),
    "sdf": (lambda folder: write_sdf(folder / "a.sdf", [embedded("O"), embedded("C=O")]), r"a\.sdf: record 2: 4 atoms"),
    "xyz": (lambda folder: write_xyz(folder / "a.xyz", [embedded("O"), embedded("C=O")]), r"a\.xyz: frame 2: 4 atoms"),
}


@pytest.mark.parametrize("form", READERS_OF_A)
def test_molecule_that_is_too_large_is_named(tmp_path, form):
    write, message = READERS_OF_A[form]
    write(tmp_path)
    assert READERS[form](tmp_path, HCNO, 4).positions.shape[1] == 4
    with pytest.raises(UserError, match=f"{message}, not 1 to 3"):
        READERS[form](tmp_path, HCNO, 3)


@pytest.mark.parametrize(("form", "write"), [("sdf", write_sdf), ("xyz", write_xyz)])
def test_other_element_in_own_files_is_refused(tmp_path, form, write):
    write(tmp_path / f"a.{form}", [embedded("O"), embedded("CF")])
    with pytest.raises(UserError, match=rf"a\.{form}: (record|frame) 2: holds F"):
        READERS[form](tmp_path, HCNO, 29)


@pytest.mark.parametrize("form", ["sdf", "xyz"])
def test_folder_without_molecules_is_named(tmp_path, form):
    with pytest.raises(UserError, match=f"{tmp_path}: no molecules"):
        READERS[form](tmp_path, HCNO, 29)


def flat(molecule):
    """The same molecule as a drawing."""
    drawing = Chem.Mol(molecule)
    drawing.RemoveAllConformers()
    return drawing


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Chem.MolToMolBlock(flat(embedded("C=O"))), "3-D"),
        (Chem.MolToMolBlock(Chem.RemoveHs(embedded("CC=O"))), "hydrogens are missing"),
        (Chem.MolToMolBlock(embedded("C=O"))[:200], "not readable"),
        ("no molecule\n", "not readable"),
    ],
    ids=["drawing", "hydrogens", "cut", "text"],
)
def test_wrong_record_of_an_sdf_file_is_named(tmp_path, record, message):
    write_sdf(tmp_path / "a.sdf", [embedded("O")])
    with (tmp_path / "a.sdf").open("a") as file:
        file.write(record + "$$$$\n")
    with pytest.raises(UserError, match=rf"a\.sdf: record 2: .*{message}"):
        READERS["sdf"](tmp_path, HCNO, 29)


def test_hydrogens_may_be_missing_where_none_are_wanted(tmp_path):
    write_sdf(tmp_path / "a.sdf", [Chem.RemoveHs(embedded("CC=O"))])
    assert READERS["sdf"](tmp_path, ["C", "O"], 29).atomic_numbers.tolist() == [[6, 6, 8]]


def test_empty_sdf_file_is_named(tmp_path):
    (tmp_path / "a.sdf").touch()
    with pytest.raises(UserError, match=r"a\.sdf: not a readable"):
        READERS["sdf"](tmp_path, HCNO, 29)


@pytest.mark.parametrize(
    "frame",
    ["3\n\nO 0 0 0\nH 0 0 1\n", "2\n\nO 0 0 0\nH 0 0 1\nH 0 1 0\n", "1\n\nXx 0 0 0\n", "1\n\nO 0 zero 0\n", "-1\n\n"],
    ids=["fewer", "more", "element", "number", "negative"],
)
def test_wrong_frame_of_an_xyz_file_is_named(tmp_path, frame):
    (tmp_path / "a.xyz").write_text("1\nneon\nNe 0 0 0\n" + frame)
    with pytest.raises(UserError, match=r"a\.xyz: frame [23]: not a readable"):
        READERS["xyz"](tmp_path, ["H", "O", "Ne"], 29)


def test_small_molecules_are_enumerated():
    """Written down by hand: methane to hydroxylamine, without N2, O2, H2O2, HN=NH, HN=O; hydrocarbons up to C4."""
    two = ["C", "N", "O", "CC", "C=C", "C#C", "CN", "C=N", "C#N", "CO", "C=O", "NN", "NO"]
    assert enumerate_molecules(["C", "N", "O"], 2) == sorted(two)
    three = ["C", "CC", "C=C", "C#C", "CCC", "C=CC", "C#CC", "C1CC1"]
    assert enumerate_molecules(["C"], 3) == sorted(three)
    four = ["CCCC", "CC(C)C", "C=CCC", "CC=CC", "C=C(C)C", "C#CCC", "CC#CC", "C=CC=C", "C#CC=C", "C#CC#C"]
    assert enumerate_molecules(["C"], 4) == sorted([*three, *four, "C1CCC1", "CC1CC1"])


def test_enumerated_molecules_are_neutral_with_full_valences_and_no_unstable_groups():
    found = enumerate_molecules(["C", "N", "O"], 4)
    assert len(found) == len(set(found)) > 100
    for smiles in found:
        molecule = Chem.MolFromSmiles(smiles)
        assert Chem.MolToSmiles(molecule) == smiles
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        for atom in molecule.GetAtoms():
            assert atom.GetFormalCharge() == atom.GetNumRadicalElectrons() == 0
            assert atom.GetTotalValence() == {"C": 4, "N": 3, "O": 2}[atom.GetSymbol()]
    assert {"CC(=O)O", "CC(N)=O", "C1COC1", "CCON", "C#CC=O"} <= set(found)
    refused = ["OCO", "NCN", "C=CO", "C=CN", "N=CO", "N#CO", "C=C=C", "O=C=O", "C1=CC1", "CC1=CO1", "c1co[nH]1", "NNN"]
    assert not set(refused) & set(found)


def test_geometries_of_enumerated_molecules(tmp_path):
    """Six geometries of each molecule, with bond lengths, C-C and C-H, of real molecules; the same bytes each time."""
    found = READERS["enumerated"](tmp_path, ["H", "C"], 8)
    assert found.positions.shape == (len(found.atomic_numbers), 8, 3)
    molecules, counts = np.unique(found.atomic_numbers, axis=0, return_counts=True)
    assert (counts % 6 == 0).all()
    assert [6, 1, 1, 1, 1, 0, 0, 0] in molecules.tolist()
    assert (molecules > 0).sum(1).max() == 8
    distances = np.linalg.norm(found.positions[:, :, None] - found.positions[:, None], axis=-1)
    numbers = found.atomic_numbers
    for element, partner, shortest in [(6, 6, (1.18, 1.56)), (1, 6, (1.05, 1.12))]:
        pairs = np.where(numbers[:, None] == partner, distances + 9 * (distances == 0), 9.0).min(2)[numbers == element]
        pairs = pairs[pairs < 9]
        assert pairs.min() > shortest[0]
        assert pairs.max() < shortest[1]
    again = READERS["enumerated"](tmp_path, ["H", "C"], 8)
    assert np.array_equal(found.positions, again.positions)


def test_conformers_of_a_flexible_molecule_differ(tmp_path):
    """Among the C4H10, isobutane spans 2.5 Angstrom, and butane 3.1 (gauche) or 3.9 (anti)."""
    found = READERS["enumerated"](tmp_path, ["H", "C"], 14)
    butanes = ((found.atomic_numbers == 6).sum(1) == 4) & ((found.atomic_numbers == 1).sum(1) == 10)
    carbon = found.positions[butanes, :4]
    spans = np.linalg.norm(carbon[:, :, None] - carbon[:, None], axis=-1).max((1, 2))
    assert len(spans) == 12
    assert set((10 * spans).round().tolist()) == {25, 31, 39}


def test_enumeration_has_rules_for_few_elements(tmp_path):
    with pytest.raises(UserError, match=r"S: .*H, C, N, O, F"):
        READERS["enumerated"](tmp_path, ["H", "C", "S"], 8)
